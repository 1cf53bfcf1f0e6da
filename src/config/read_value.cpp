#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "config/scalar.h"
#include "config/value.h"
#include "core/check.h"
#include "formats/prompt_template_fields.h"
#include "lora/core/error.h"
#include "lora/core/pattern.h"
#include "lora/core/text.h"

namespace lora::config {
namespace {

using Kind = YamlNode::Kind;

std::string found_in(const YamlNode& node) {
  switch (node.kind) {
    case Kind::kNull:
      return "nothing";
    case Kind::kSequence:
      return "a list";
    case Kind::kMap:
      return "a map";
    case Kind::kScalar:
      break;
  }
  return node.quoted ? fmt::format("the text \"{}\"", shown(node.scalar)) : shown(node.scalar);
}

[[noreturn]] void refuse_with_hint(const YamlNode& node, const KeyContext& context, std::string_view must,
                                   std::string_view hint) {
  fail<ConfigError>("[{}] {} {}; found {}{}{}", context.source.place_of(node), context.key, must, found_in(node),
                    hint.empty() ? "" : "; ", hint);
}

void check_number(const YamlNode& node, const KeyContext& context, NumberFault fault, std::string_view type) {
  const bool is_plain = node.kind == Kind::kScalar && !node.quoted;
  if (is_plain && fault == NumberFault::kNone) return;
  if (is_plain && fault == NumberFault::kOutOfRange) {
    refuse_with_hint(node, context, fmt::format("must be {}", type), "it is out of range");
  }
  refuse_with_hint(node, context, fmt::format("must be {}", type),
                   node.quoted ? "a number has no quotes"
                   : is_plain  ? "numbers are written in decimal, such as 10 or 2.0e-4"
                               : "");
}

void check_range(const YamlNode& node, const KeyContext& context, double value) {
  const Rule& rule = context.rule;
  const bool is_high_enough = rule.least_is_open ? value > rule.least : value >= rule.least;
  const bool is_low_enough = rule.most_is_open ? value < rule.most : value <= rule.most;
  if (is_high_enough && is_low_enough) return;
  std::string range;
  if (std::isfinite(rule.least)) range = fmt::format("{} {}", rule.least_is_open ? "above" : "at least", rule.least);
  if (std::isfinite(rule.most)) {
    range += fmt::format("{}{} {}", range.empty() ? "" : " and ", rule.most_is_open ? "below" : "at most", rule.most);
  }
  refuse(node, context, fmt::format("must be {}", range));
}

/// A choice that ends in _N stands for every number of up to three digits.
bool stands_for(std::string_view choice, std::string_view text) {
  if (choice == text) return true;
  if (!choice.ends_with("_N")) return false;
  const std::string_view stem = choice.substr(0, choice.size() - 1);
  if (!text.starts_with(stem)) return false;
  const std::string_view digits = text.substr(stem.size());
  return !digits.empty() && digits.size() <= 3 &&
         std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
}

bool is_choice(const std::vector<std::string_view>& choices, std::string_view text) {
  return std::any_of(choices.begin(), choices.end(), [&](std::string_view choice) { return stands_for(choice, text); });
}

void check_choice(const YamlNode& node, const KeyContext& context, const std::string& text) {
  const std::vector<std::string_view>& choices = context.rule.choices;
  if (is_choice(choices, text)) return;
  const std::string must =
      choices.size() == 1 ? fmt::format("must be {}", choices[0]) : fmt::format("must be one of {}", fmt::join(choices, ", "));
  const std::string stem = text.substr(0, text.find("_niter_"));
  if (is_choice(context.rule.later, stem)) refuse(node, context, must + " in this version");
  const std::vector<std::string> known(choices.begin(), choices.end());
  refuse_with_hint(node, context, must, fmt::format("did you mean {}?", nearest_names(text, known, 1).front()));
}

/// The text of a scalar that is meant as text: not empty, and not a number or boolean that lacks
/// its quotes.
std::string read_text(const YamlNode& node, const KeyContext& context) {
  if (node.kind != Kind::kScalar) refuse(node, context, "must be text");
  const bool is_word = is_choice(context.rule.choices, node.scalar);
  if (!node.quoted && !is_word && is_typed_scalar(node.scalar)) {
    refuse_with_hint(node, context, "must be text", "put it in quotes if it is a name");
  }
  if (node.scalar.empty()) refuse(node, context, "must not be empty");
  if (node.scalar.find('\0') != std::string::npos) refuse(node, context, "must not hold a zero byte");
  return node.scalar;
}

void check_pattern(const YamlNode& node, const KeyContext& context, const std::string& expression) {
  NamePattern(expression, fmt::format("{} {}", context.source.place_of(node), context.key));
}

Path absolute_path(const YamlNode& node, const KeyContext& context, const std::string& text) {
  if (text == "~" || text.starts_with("~/")) {
    refuse_with_hint(node, context, "must be a path", "~ is expanded by shells only, write the folder out");
  }
  const Path path = (context.source.base / text).lexically_normal();
  return path.has_filename() ? path : path.parent_path();
}

Path path_inside_output(const YamlNode& node, const KeyContext& context, const std::string& text) {
  const Path path = Path(text).lexically_normal();
  const bool escapes = path.is_absolute() || *path.begin() == "..";
  if (escapes || !path.has_filename() || path == ".") {
    refuse(node, context, "must be a file inside run.output_dir");
  }
  return path;
}

template <class T>
std::vector<T> read_list(const YamlNode& node, const KeyContext& context) {
  const bool is_single = context.rule.accepts_single && node.kind == Kind::kScalar;
  if (!is_single && node.kind != Kind::kSequence) refuse(node, context, "must be a list");
  const std::vector<YamlNode> single = is_single ? std::vector{node} : std::vector<YamlNode>{};
  std::vector<T> values;
  for (const YamlNode& item : is_single ? single : node.items) {
    const KeyContext place{context.source, fmt::format("{}[{}]", context.key, values.size()), context.rule};
    T value{};
    read_value(item, place, value);
    values.push_back(std::move(value));
  }
  const size_t length = context.rule.list_length;
  if (length != 0 && values.size() != length) {
    fail<ConfigError>("[{}] {} must be a list of {}; found {}", context.source.place_of(node), context.key, length,
                      values.size());
  }
  return values;
}

/// A text of a template, which may be empty.
std::string read_template_text(const YamlNode& node, const KeyContext& context) {
  if (node.kind != Kind::kScalar) refuse(node, context, "must be text");
  if (!node.quoted && is_typed_scalar(node.scalar)) refuse_with_hint(node, context, "must be text", "put it in quotes");
  return node.scalar;
}

/// Puts one entry of a template's map into its place; false: there is none of that name.
bool read_template_part(const std::string& name, const YamlNode& node, const KeyContext& context, formats::PromptTemplate& form) {
  for (const auto& [known, member] : formats::kTemplateTexts) {
    if (known == name) return form.*member = read_template_text(node, context), true;
  }
  for (const auto& [known, member] : formats::kTemplateSwitches) {
    if (known == name) return read_value(node, context, form.*member), true;
  }
  return false;
}

[[noreturn]] void refuse_template_part(const std::string& name, const YamlNode& node, const KeyContext& context) {
  std::vector<std::string> known;
  for (const auto& part : formats::kTemplateTexts) known.emplace_back(part.first);
  for (const auto& part : formats::kTemplateSwitches) known.emplace_back(part.first);
  fail<ConfigError>("[{}] unknown key {}.{}; did you mean {}?", context.source.place_of(node), context.key, shown(name),
                    nearest_names(name, known, 1).front());
}

formats::PromptTemplate read_own_template(const YamlNode& node, const KeyContext& context) {
  formats::PromptTemplate form;
  for (const auto& [name, item] : node.entries) {
    const KeyContext place{context.source, fmt::format("{}.{}", context.key, shown(name)), context.rule};
    if (!read_template_part(name, item, place, form)) refuse_template_part(name, item, context);
  }
  formats::check_prompt_template(form, context.source.place_of(node));
  return form;
}

}  // namespace

std::string Source::place_of(const YamlNode& node) const {
  return has_lines ? fmt::format("{}:{}", name, node.key_line > 0 ? node.key_line : node.line) : name;
}

void refuse(const YamlNode& node, const KeyContext& context, std::string_view must) { refuse_with_hint(node, context, must, ""); }

void read_value(const YamlNode& node, const KeyContext& context, int64_t& value) {
  check_number(node, context, parse_integer(node.scalar, value), "an integer");
  check_range(node, context, static_cast<double>(value));
}

void read_value(const YamlNode& node, const KeyContext& context, double& value) {
  check_number(node, context, parse_decimal(node.scalar, value), "a number");
  check_range(node, context, value);
}

void read_value(const YamlNode& node, const KeyContext& context, bool& value) {
  value = node.scalar == "true";
  const bool is_boolean = node.kind == Kind::kScalar && !node.quoted && (value || node.scalar == "false");
  if (!is_boolean) refuse(node, context, "must be true or false");
}

void read_value(const YamlNode& node, const KeyContext& context, std::string& value) {
  const Rule& rule = context.rule;
  value = read_text(node, context);
  if (rule.has_form && !rule.has_form(value)) refuse(node, context, fmt::format("must be {}", rule.form));
  if (rule.text == TextKind::kPattern) check_pattern(node, context, value);
  if (rule.text == TextKind::kPath && !is_choice(rule.choices, value)) {
    value = absolute_path(node, context, value).string();
  } else if (!rule.choices.empty()) {
    check_choice(node, context, value);
  }
}

void read_value(const YamlNode& node, const KeyContext& context, Path& value) {
  const std::string text = read_text(node, context);
  value =
      context.rule.text == TextKind::kInsideOutput ? path_inside_output(node, context, text) : absolute_path(node, context, text);
}

void read_value(const YamlNode& node, const KeyContext& context, Names& value) {
  if (node.kind == Kind::kSequence) {
    value = read_list<std::string>(node, context);
    return;
  }
  if (node.kind != Kind::kScalar) refuse(node, context, "must be a list of names or one text");
  const std::string expression = read_text(node, context);
  check_pattern(node, context, expression);
  value = expression;
}

void read_value(const YamlNode& node, const KeyContext& context, Patterns& value) {
  if (node.kind != Kind::kMap) refuse(node, context, "must be a map from names to integers");
  Patterns patterns;
  for (const auto& [name, item] : node.entries) {
    const KeyContext place{context.source, fmt::format("{}.{}", context.key, shown(name)), context.rule};
    check_pattern(item, place, name);
    int64_t number = 0;
    read_value(item, place, number);
    patterns.emplace_back(name, number);
  }
  value = std::move(patterns);
}

void read_value(const YamlNode& node, const KeyContext& context, TokenIndices& value) {
  if (node.kind == Kind::kSequence) {
    value = read_list<int64_t>(node, context);
    return;
  }
  if (node.kind != Kind::kMap) refuse(node, context, "must be a list of token ids, or a map from modules to such lists");
  auto& by_module = value.emplace<1>();
  for (const auto& [name, ids] : node.entries) {
    const KeyContext place{context.source, fmt::format("{}.{}", context.key, shown(name)), context.rule};
    by_module.emplace_back(name, read_list<int64_t>(ids, place));
  }
}

void read_value(const YamlNode& node, const KeyContext& context, formats::PromptTemplate& value) {
  if (node.kind == Kind::kMap) {
    value = read_own_template(node, context);
    return;
  }
  const auto names = formats::prompt_template_names();
  if (node.kind != Kind::kScalar) refuse(node, context, fmt::format("must be {}, or a map of texts", fmt::join(names, ", ")));
  if (std::ranges::find(names, node.scalar) == names.end()) {
    refuse_with_hint(node, context, fmt::format("must be {}, or a map of texts", fmt::join(names, ", ")),
                     fmt::format("did you mean {}?", nearest_names(node.scalar, names, 1).front()));
  }
  value = formats::prompt_template(node.scalar);
}

void read_value(const YamlNode& node, const KeyContext& context, std::vector<int64_t>& value) {
  value = read_list<int64_t>(node, context);
}

void read_value(const YamlNode& node, const KeyContext& context, std::vector<double>& value) {
  value = read_list<double>(node, context);
}

void read_value(const YamlNode& node, const KeyContext& context, std::vector<std::string>& value) {
  value = read_list<std::string>(node, context);
}

bool is_device(std::string_view text) {
  constexpr std::string_view kNumbered = "cuda:";
  if (!text.starts_with(kNumbered)) return text == "auto" || text == "cpu" || text == "cuda";
  int64_t index = 0;
  text.remove_prefix(kNumbered.size());
  return parse_integer(text, index) == NumberFault::kNone && text[0] != '+' && index >= 0 && index < 1024;
}

}  // namespace lora::config
