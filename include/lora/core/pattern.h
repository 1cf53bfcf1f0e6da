#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace lora {

/// A regular expression of the run file or of a PEFT config, checked when made. ECMAScript grammar:
/// what PEFT configs on the hub use. What Python reads differently or alone (look-behind, named
/// groups, inline flags, possessive repeats, back-references, \A, \Z) is refused with ConfigError,
/// since it would match something else here. Matching takes time polynomial in the expression and
/// the name, whatever they are; an expression or name beyond 1000 characters is a ConfigError.
class NamePattern {
 public:
  /// `where` opens the messages of errors.
  NamePattern(std::string expression, std::string_view where);
  /// Python's `re.match("(.*\.)?(EXPRESSION)$", name)`: the expression after any whole components.
  static NamePattern of_last_components(std::string expression, std::string_view where);
  /// Python's `re.match("(^|.*\.)EXPRESSION($|\..*)", name)`: the expression as whole components
  /// anywhere in the name.
  static NamePattern of_components(std::string expression, std::string_view where);

  /// Python's re.fullmatch.
  bool matches_all(std::string_view name) const;
  /// Python's re.search.
  bool matches_part(std::string_view name) const;
  const std::string& expression() const { return expression_; }

 private:
  NamePattern(std::string expression, std::string_view where, std::string_view before, std::string_view after);

  std::string expression_;
  std::shared_ptr<const void> compiled_;
};

/// PEFT's list rule: `name` is `item`, or ends with "." + item.
bool matches_suffix(std::string_view name, std::string_view item);

/// Which modules get an adapter. Source: PEFT 0.21 tuners_utils.check_target_module_exists.
struct TargetRule {
  /// A list of names or dot-suffixes, or one regular expression over the whole module path. The
  /// single string "all-linear" (any case) stands for every linear layer except the output head.
  std::variant<std::vector<std::string>, std::string> targets = {};
  /// Same two forms; a match is never adapted. An empty list or string excludes nothing.
  std::variant<std::vector<std::string>, std::string> exclude = {};
  /// Only these layer indexes, for names matched by suffix from a list.
  std::optional<std::vector<int64_t>> layers_to_transform = {};
  /// Expressions for the layer container that the index follows ("layers", "h", ...), in the order
  /// they are tried; empty: the first number in the path after two components.
  std::vector<std::string> layers_pattern = {};
  /// Expressions for modules that are trained whole and therefore never adapted.
  std::vector<std::string> modules_to_save = {};

  bool is_all_linear() const;
};

/// A TargetRule with its expressions compiled. Throws ConfigError for a rule that contradicts
/// itself (one expression together with layers_to_transform) or an expression that does not
/// compile.
class TargetMatcher {
 public:
  explicit TargetMatcher(TargetRule rule);
  /// True when the module at `path` (for example "model.layers.0.self_attn.q_proj") gets an
  /// adapter. `all-linear` is the caller's business: here every path passes that does not meet
  /// `exclude` or `modules_to_save`.
  bool matches(std::string_view path) const;

 private:
  bool is_excluded(std::string_view path) const;
  bool is_saved_whole(std::string_view path) const;
  bool is_in_wanted_layer(std::string_view path) const;
  std::optional<int64_t> layer_index(std::string_view path) const;

  TargetRule rule_;
  std::optional<NamePattern> target_expression_, exclude_expression_;
  std::vector<NamePattern> saved_, layer_containers_;
};

/// First entry, in order, whose key matches `path` as PEFT's rank_pattern does:
/// `re.match("(.*\.)?(KEY)$", path)`. Values are int64_t (ranks) or double (alphas). Keys of names and dots alone, of which EVA
/// writes one per module, are compared without a regular expression, which would take seconds to compile for all of them.
template <class Value>
class PatternMap {
 public:
  /// Throws ConfigError, opened by `where`, for a key that is no expression.
  PatternMap(const std::vector<std::pair<std::string, Value>>& entries, std::string_view where);
  std::optional<Value> find(std::string_view path) const;

 private:
  struct Entry {
    std::string key;
    std::optional<NamePattern> expression;  ///< nothing: names and dots alone
    Value value;
  };
  std::vector<Entry> entries_;
};

}  // namespace lora
