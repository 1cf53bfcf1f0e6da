#include "lora/formats/prompt_template.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/check.h"
#include "formats/prompt_template_fields.h"
#include "lora/core/text.h"

namespace lora::formats {
namespace {

using Kind = TemplatePiece::Kind;

constexpr std::array<std::pair<std::string_view, Kind>, 5> kPlaces = {
    {{"content", Kind::kContent}, {"input", Kind::kInput}, {"bos", Kind::kBegin}, {"eos", Kind::kEnd}, {"round", Kind::kRound}}};

/// Source: meta-llama/llama generation.py.
PromptTemplate llama2() {
  return {.name = "llama2",
          .prefix = "",
          .system = "<<SYS>>\n{content}\n<</SYS>>\n\n",
          .user = "{bos}[INST] {content} [/INST]",
          .assistant = " {content} {eos}",
          .system_in_user = true,
          .strip = true,
          .reserved = {"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"}};
}

/// Source: lm-sys/FastChat conversation.py, vicuna_v1.1.
PromptTemplate vicuna() {
  return {.name = "vicuna",
          .system = "{content} ",
          .user = "USER: {content} ASSISTANT:",
          .assistant = " {content}{eos}",
          .default_system =
              "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
              "detailed, and polite answers to the user's questions."};
}

/// Source: tloen/alpaca-lora templates/alpaca.json; further questions, which it does not have, follow in the same form.
PromptTemplate alpaca() {
  return {.name = "alpaca",
          .system = "{content}\n\n",
          .user = "### Instruction:\n{content}\n\n### Response:\n",
          .default_system =
              "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
          .input = "{content}\n\n### Input:\n{input}",
          .default_system_with_input =
              "Below is an instruction that describes a task, paired with an input that provides further "
              "context. Write a response that appropriately completes the request."};
}

PromptTemplate chatglm() { return {.name = "chatglm", .rounds = true}; }

const std::vector<PromptTemplate>& built_in() {
  static const std::vector<PromptTemplate> templates = {llama2(), vicuna(), alpaca(), chatglm()};
  return templates;
}

bool is_word(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](char c) { return (c >= 'a' && c <= 'z') || c == '_'; });
}

Kind place_of(std::string_view word, std::string_view where) {
  const auto* known = std::ranges::find(kPlaces, word, &std::pair<std::string_view, Kind>::first);
  if (known != kPlaces.end()) return known->second;
  std::vector<std::string> words;
  for (const auto& place : kPlaces) words.emplace_back(place.first);
  fail<ConfigError>("[{}] words in braces must be places of a template, {{{}}}; found {{{}}}; did you mean {{{}}}?", where,
                    fmt::join(words, "}, {"), word, nearest_names(word, words, 1).front());
}

/// How many pieces are places of a kind.
auto count_of(const std::vector<TemplatePiece>& pieces, Kind kind) {
  return std::ranges::count(pieces, kind, &TemplatePiece::kind);
}

void check_text(std::string_view name, const std::string& text, const std::vector<Kind>& once, const std::vector<Kind>& any,
                std::string_view where) {
  const auto pieces = template_pieces(text, fmt::format("{}] [template.{}", where, name));
  for (const auto& [word, kind] : kPlaces) {
    const auto count = count_of(pieces, kind);
    const bool is_needed = std::ranges::find(once, kind) != once.end(), is_free = std::ranges::find(any, kind) != any.end();
    require<ConfigError>(!is_needed || count == 1, "[{}] template.{} must hold {{{}}} once; found it {} times in {:?}", where,
                         name, word, count, text);
    require<ConfigError>(is_needed || is_free || count == 0,
                         "[{}] template.{} must not hold {{{}}}, which has no meaning there; found {:?}", where, name, word,
                         text);
  }
}

/// A text that no other one looks like.
std::string unmistakable(std::string_view text) { return fmt::format("{} {}", text.size(), text); }

}  // namespace

std::vector<std::string> prompt_template_names() {
  std::vector<std::string> names;
  for (const auto& form : built_in()) names.push_back(form.name);
  return names;
}

PromptTemplate prompt_template(std::string_view name) {
  for (const auto& form : built_in()) {
    if (form.name == name) return form;
  }
  const auto names = prompt_template_names();
  fail<ConfigError>("[template] a template must be one of {}; found {:?}; did you mean {}?", fmt::join(names, ", "), name,
                    nearest_names(name, names, 1).front());
}

std::vector<TemplatePiece> template_pieces(std::string_view text, std::string_view where) {
  std::vector<TemplatePiece> pieces;
  std::string plain;
  const auto end_text = [&] {
    if (!plain.empty()) pieces.push_back({.text = std::exchange(plain, {})});
  };
  while (!text.empty()) {
    const size_t close = text.front() == '{' ? text.find('}') : std::string_view::npos;
    const bool is_place = close != std::string_view::npos && is_word(text.substr(1, close - 1));
    if (is_place) {
      end_text();
      pieces.push_back({.kind = place_of(text.substr(1, close - 1), where)});
    } else {
      plain += text.front();
    }
    text.remove_prefix(is_place ? close + 1 : 1);
  }
  end_text();
  return pieces;
}

void check_prompt_template(const PromptTemplate& form, std::string_view where) {
  if (form.rounds) return;
  const std::vector<Kind> tokens = {Kind::kBegin, Kind::kEnd};
  check_text("prefix", form.prefix, {}, tokens, where);
  check_text("system", form.system, {Kind::kContent}, form.system_in_user ? std::vector<Kind>{} : tokens, where);
  check_text("user", form.user, {Kind::kContent}, {Kind::kBegin, Kind::kEnd, Kind::kRound}, where);
  check_text("assistant", form.assistant, {Kind::kContent}, tokens, where);
  check_text("input", form.input, {Kind::kContent, Kind::kInput}, {}, where);
}

std::string template_description(const PromptTemplate& form) {
  std::string text;
  for (const auto& [name, member] : kTemplateTexts) text += fmt::format("{} {}\n", name, unmistakable(form.*member));
  for (const auto& [name, member] : kTemplateSwitches) text += fmt::format("{} {}\n", name, form.*member);
  for (const auto& tag : form.reserved) text += fmt::format("reserved {}\n", unmistakable(tag));
  return text +
         fmt::format("default_system_with_input {}\nrounds {}\n", unmistakable(form.default_system_with_input), form.rounds);
}

}  // namespace lora::formats
