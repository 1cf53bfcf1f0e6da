#include "lora/core/pattern.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstddef>
#include <regex>
#include <system_error>

#include "core/check.h"

namespace lora {
namespace {

constexpr size_t kMaxExpressionLength = 1000;
constexpr size_t kMaxNameLength = 1000;
/// The matcher's automaton has a state or two per character and recurses over all of them.
constexpr size_t kMaxExpandedLength = 10'000;

/// Escapes by letter that Python and ECMAScript read alike.
constexpr std::string_view kSharedEscapes = "dDsSwWbBnrtfv";

constexpr auto kGrammar = std::regex::ECMAScript |
                          std::regex::nosubs
#ifdef __GLIBCXX__
                          // Breadth first: the depth-first matcher takes exponential time on (a+)+
                          // and recurses over the whole name.
                          | std::regex_constants::__polynomial
#endif
    ;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

/// Walks over an expression and refuses what Python and ECMAScript read differently.
class PortabilityCheck {
 public:
  PortabilityCheck(std::string_view expression, std::string_view where) : expression_(expression), where_(where) {}

  void run() {
    while (position_ < expression_.size()) {
      const bool repeats = check_next();
      if (repeats && follows("+")) refuse("possessive repeats such as a*+");
      if (repeats && follows("*")) refuse("a repeat of a repeat");
    }
  }

 private:
  /// Steps over one token. True when it was a repeat.
  bool check_next() {
    const char c = expression_[position_++];
    switch (c) {
      case '\\':
        check_escape();
        return false;
      case '[':
        check_class();
        return false;
      case '(':
        check_group();
        return false;
      case '*':
      case '+':
      case '?':
        return true;
      case '{':
        check_count();
        return true;
      default:
        return false;
    }
  }

  void check_escape() {
    require<ConfigError>(position_ < expression_.size(),
                         "[{}] a regular expression must not end with a single \\; found {:?}; "
                         "write \\\\ for the character",
                         where_, expression_);
    const char c = expression_[position_++];
    if (is_digit(c)) refuse("back-references such as \\1");
    if (is_letter(c) && kSharedEscapes.find(c) == std::string_view::npos) {
      refuse("escapes such as \\A, \\Z, \\x, \\u");
    }
  }

  void check_class() {
    if (follows("^")) ++position_;
    if (follows("]")) refuse("a ] at the beginning of a character class");
    while (position_ < expression_.size() && expression_[position_] != ']') {
      const char c = expression_[position_++];
      if (c == '\\') check_escape();
      if (c == '[' && (follows(":") || follows(".") || follows("="))) {
        refuse("named character classes such as [[:alpha:]]");
      }
    }
    ++position_;
  }

  void check_group() {
    if (!follows("?")) return;
    if (follows("?:") || follows("?=") || follows("?!")) {
      position_ += 2;
    } else {
      refuse("look-behind (?<=, named groups (?P<, inline flags (?i) and atomic groups (?>");
    }
  }

  /// {n}, {n,} or {n,m}: how long the expression becomes when it is written out.
  void check_count() {
    size_t largest = 1;
    while (position_ < expression_.size() && expression_[position_] != '}') {
      const char* begin = expression_.data() + position_;
      size_t count = 0;
      const auto read = std::from_chars(begin, expression_.data() + expression_.size(), count);
      if (read.ec == std::errc::result_out_of_range) count = kMaxExpandedLength;
      largest = std::max(largest, count);
      position_ += std::max<size_t>(1, static_cast<size_t>(read.ptr - begin));
    }
    ++position_;
    repeats_ = std::min(repeats_ * std::min(largest, kMaxExpandedLength), kMaxExpandedLength);
    require<ConfigError>(repeats_ * expression_.size() <= kMaxExpandedLength,
                         "[{}] the counts of a regular expression must keep it under {} characters "
                         "when written out; found {:?}; use * or +",
                         where_, kMaxExpandedLength, expression_);
  }

  bool follows(std::string_view text) const {
    return expression_.substr(std::min(position_, expression_.size())).starts_with(text);
  }

  [[noreturn]] void refuse(std::string_view construct) const {
    fail<ConfigError>(
        "[{}] a regular expression must mean the same here as in Python, which {} may "
        "not; found {:?}; write it without",
        where_, construct, expression_);
  }

  std::string_view expression_, where_;
  size_t position_ = 0, repeats_ = 1;
};

std::shared_ptr<const std::regex> compile(std::string_view expression, std::string_view where, std::string_view before,
                                          std::string_view after) {
  require<ConfigError>(expression.size() <= kMaxExpressionLength,
                       "[{}] a regular expression must have at most {} characters; found {}; "
                       "shorten it or use a list of names",
                       where, kMaxExpressionLength, expression.size());
  require<ConfigError>(expression.find('\0') == std::string_view::npos,
                       "[{}] a regular expression must be text; found a NUL character; remove it", where);
  PortabilityCheck(expression, where).run();
  try {
    // Compiled alone first: `a)|(b` would pass inside a group.
    auto compiled = std::make_shared<const std::regex>(std::string(expression), kGrammar);
    if (before.empty() && after.empty()) return compiled;
    return std::make_shared<const std::regex>(fmt::format("{}(?:{}){}", before, expression, after), kGrammar);
  } catch (const std::regex_error& error) {
    fail<ConfigError>("[{}] must be a regular expression; found {:?}: {}; correct it", where, expression, error.what());
  }
}

void require_matchable(std::string_view name, const std::string& expression) {
  require<ConfigError>(name.size() <= kMaxNameLength,
                       "[pattern {:?}] names must have at most {} characters; found one of {} that "
                       "begins {:?}; name it in a list instead",
                       expression, kMaxNameLength, name.size(), name.substr(0, 40));
}

std::vector<std::string_view> split_at_dots(std::string_view path) {
  std::vector<std::string_view> components;
  size_t begin = 0;
  for (size_t dot = path.find('.'); dot != std::string_view::npos; dot = path.find('.', begin)) {
    components.push_back(path.substr(begin, dot - begin));
    begin = dot + 1;
  }
  components.push_back(path.substr(begin));
  return components;
}

std::optional<int64_t> as_index(std::string_view component) {
  if (component.empty() || !std::ranges::all_of(component, is_digit)) return std::nullopt;
  int64_t value = 0;
  const auto read = std::from_chars(component.data(), component.data() + component.size(), value);
  if (read.ec != std::errc()) return std::nullopt;
  return value;
}

/// Nothing but names and dots: as an expression it matches itself, any character standing for a dot.
bool is_plain_path(std::string_view key) {
  return !key.empty() && key.size() <= kMaxExpressionLength &&
         std::ranges::all_of(key, [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '.'; });
}

/// What `(.*\.)?KEY` does for such a key.
bool matches_last_components(std::string_view path, std::string_view key) {
  require_matchable(path, std::string(key));
  if (path.size() < key.size()) return false;
  const std::string_view last = path.substr(path.size() - key.size());
  const auto same = [](char in_path, char in_key) {
    return in_key == '.' ? in_path != '\n' && in_path != '\r' : in_path == in_key;
  };
  if (!std::ranges::equal(last, key, same)) return false;
  return last.size() == path.size() || path[path.size() - key.size() - 1] == '.';
}

bool contains_suffix_of(const std::vector<std::string>& items, std::string_view path) {
  return std::ranges::any_of(items, [&](const auto& item) { return matches_suffix(path, item); });
}

}  // namespace

NamePattern::NamePattern(std::string expression, std::string_view where) : NamePattern(std::move(expression), where, "", "") {}

NamePattern::NamePattern(std::string expression, std::string_view where, std::string_view before, std::string_view after)
    : expression_(std::move(expression)), compiled_(compile(expression_, where, before, after)) {}

NamePattern NamePattern::of_last_components(std::string expression, std::string_view where) {
  return NamePattern(std::move(expression), where, R"((?:.*\.)?)", "");
}

NamePattern NamePattern::of_components(std::string expression, std::string_view where) {
  return NamePattern(std::move(expression), where, R"((?:.*\.)?)", R"((?:\..*)?)");
}

bool NamePattern::matches_all(std::string_view name) const {
  require_matchable(name, expression_);
  return std::regex_match(name.begin(), name.end(), *std::static_pointer_cast<const std::regex>(compiled_));
}

bool NamePattern::matches_part(std::string_view name) const {
  require_matchable(name, expression_);
  return std::regex_search(name.begin(), name.end(), *std::static_pointer_cast<const std::regex>(compiled_));
}

bool matches_suffix(std::string_view name, std::string_view item) {
  if (!name.ends_with(item)) return false;
  const size_t rest = name.size() - item.size();
  return rest == 0 || name[rest - 1] == '.';
}

bool TargetRule::is_all_linear() const {
  constexpr std::string_view kAllLinear = "all-linear";
  const auto* text = std::get_if<std::string>(&targets);
  return text != nullptr &&
         std::ranges::equal(*text, kAllLinear, {}, [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
}

TargetMatcher::TargetMatcher(TargetRule rule) : rule_(std::move(rule)) {
  const auto* expression = std::get_if<std::string>(&rule_.targets);
  require<ConfigError>(expression == nullptr || (!rule_.layers_to_transform && rule_.layers_pattern.empty()),
                       "[target_modules] must be a list when layers_to_transform or layers_pattern is given; found "
                       "one string; put the layer numbers into the expression, or give a list of names");
  require<ConfigError>(rule_.layers_pattern.empty() || rule_.layers_to_transform,
                       "[layers_pattern] needs layers_to_transform; found none; give the layer "
                       "numbers or remove layers_pattern");
  if (expression != nullptr && !rule_.is_all_linear()) {
    target_expression_.emplace(*expression, "target_modules");
  }
  const auto* excluded = std::get_if<std::string>(&rule_.exclude);
  if (excluded != nullptr && !excluded->empty()) {
    exclude_expression_.emplace(*excluded, "exclude_modules");
  }
  for (const std::string& name : rule_.modules_to_save) {
    saved_.push_back(NamePattern::of_components(name, "modules_to_save"));
  }
  for (const std::string& container : rule_.layers_pattern) {
    layer_containers_.push_back(NamePattern::of_last_components(container, "layers_pattern"));
  }
}

bool TargetMatcher::matches(std::string_view path) const {
  if (is_excluded(path) || is_saved_whole(path)) return false;
  if (rule_.is_all_linear()) return true;
  if (target_expression_) return target_expression_->matches_all(path);
  const auto& items = std::get<std::vector<std::string>>(rule_.targets);
  if (std::ranges::find(items, path) != items.end()) return true;
  return contains_suffix_of(items, path) && is_in_wanted_layer(path);
}

bool TargetMatcher::is_excluded(std::string_view path) const {
  if (exclude_expression_) return exclude_expression_->matches_all(path);
  const auto* items = std::get_if<std::vector<std::string>>(&rule_.exclude);
  return items != nullptr && contains_suffix_of(*items, path);
}

bool TargetMatcher::is_saved_whole(std::string_view path) const {
  return std::ranges::any_of(saved_, [&](const auto& saved) { return saved.matches_all(path); });
}

bool TargetMatcher::is_in_wanted_layer(std::string_view path) const {
  if (!rule_.layers_to_transform) return true;
  const auto index = layer_index(path);
  return index && std::ranges::find(*rule_.layers_to_transform, *index) != rule_.layers_to_transform->end();
}

std::optional<int64_t> TargetMatcher::layer_index(std::string_view path) const {
  const auto components = split_at_dots(path);
  // Number of the first component, from `first` on, that is an index and has something after it.
  const auto find_index = [&](size_t first, const auto& follows_container) -> std::optional<int64_t> {
    for (size_t i = first; i + 1 < components.size(); ++i) {
      const auto index = as_index(components[i]);
      const auto before = static_cast<size_t>(components[i].data() - path.data());
      if (index && follows_container(path.substr(0, before - 1))) return index;
    }
    return std::nullopt;
  };
  if (layer_containers_.empty()) {
    return find_index(2, [](std::string_view) { return true; });
  }
  for (const NamePattern& container : layer_containers_) {
    const auto index = find_index(1, [&](std::string_view prefix) { return container.matches_all(prefix); });
    if (index) return index;
  }
  return std::nullopt;
}

template <class Value>
PatternMap<Value>::PatternMap(const std::vector<std::pair<std::string, Value>>& entries, std::string_view where) {
  for (const auto& [key, value] : entries) {
    std::optional<NamePattern> expression;
    if (!is_plain_path(key)) expression = NamePattern::of_last_components(key, where);
    entries_.push_back({key, std::move(expression), value});
  }
}

template <class Value>
std::optional<Value> PatternMap<Value>::find(std::string_view path) const {
  const auto found = std::ranges::find_if(entries_, [&](const auto& entry) {
    return entry.expression ? entry.expression->matches_all(path) : matches_last_components(path, entry.key);
  });
  if (found == entries_.end()) return std::nullopt;
  return found->value;
}

template class PatternMap<int64_t>;
template class PatternMap<double>;

}  // namespace lora
