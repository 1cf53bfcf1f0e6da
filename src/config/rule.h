// What a key of the run file accepts, beyond the type of its member.
#pragma once

#include <limits>
#include <string_view>
#include <utility>
#include <vector>

namespace lora::config {

/// What a changed key does to a run that is resumed.
enum class Effect {
  kResult,   ///< another result: refused
  kHorizon,  ///< how far the run goes: another result only where the learning rate looks ahead
  kNone,     ///< where, how often or how fast things happen
};

/// How a text is taken.
enum class TextKind {
  kPlain,
  kPath,          ///< made absolute; a word of `choices` is not
  kInsideOutput,  ///< a path below run.output_dir, kept relative
  kPattern,       ///< a regular expression on names
};

struct Rule {
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
  bool least_is_open = false, most_is_open = false;
  size_t list_length = 0;       ///< 0: any
  bool accepts_single = false;  ///< one value stands for a list of one
  std::vector<std::string_view> choices = {};
  std::vector<std::string_view> later = {};  ///< choices of the contract that this version does not have
  std::string_view absent_word = {};         ///< stands for "not given", besides null
  std::string_view alias = {};               ///< a second name of the key
  bool (*has_form)(std::string_view) = nullptr;
  std::string_view form = {};  ///< what has_form tests, in words
  TextKind text = TextKind::kPlain;
  Effect effect = Effect::kResult;

  Rule with_effect(Effect value) const { return with(&Rule::effect, value); }
  Rule with_later(std::vector<std::string_view> value) const { return with(&Rule::later, std::move(value)); }
  Rule with_absent_word(std::string_view value) const { return with(&Rule::absent_word, value); }
  Rule with_alias(std::string_view value) const { return with(&Rule::alias, value); }
  Rule with_text(TextKind value) const { return with(&Rule::text, value); }
  Rule with_length(size_t value) const { return with(&Rule::list_length, value); }
  Rule or_single() const { return with(&Rule::accepts_single, true); }

 private:
  template <class T>
  Rule with(T Rule::*member, T value) const {
    Rule changed = *this;
    changed.*member = std::move(value);
    return changed;
  }
};

/// The closed range.
inline Rule between(double least, double most) { return {.least = least, .most = most}; }
inline Rule at_least(double least) { return {.least = least}; }
inline Rule greater_than(double least) { return {.least = least, .least_is_open = true}; }
/// From 0 to below 1.
inline Rule fraction() { return {.least = 0, .most = 1, .most_is_open = true}; }
inline Rule one_of(std::vector<std::string_view> choices) { return {.choices = std::move(choices)}; }
inline Rule of_kind(TextKind text) { return {.text = text}; }
inline Rule with_effect(Effect effect) { return {.effect = effect}; }

}  // namespace lora::config
