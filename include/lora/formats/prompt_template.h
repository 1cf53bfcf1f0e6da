#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lora::formats {

/// How a conversation is written down for a model, after the words of LLaMA-Factory's templates. In the texts `{content}`
/// stands for what somebody said, `{bos}` and `{eos}` for the tokenizer's begin and end token, `{round}` for the number of
/// questions before. Other words in braces are refused; braces around anything else are braces.
struct PromptTemplate {
  std::string name = {};                       ///< of a built-in one; empty: somebody's own
  std::string prefix = "{bos}";                ///< once, before everything
  std::string system = "{content}\n";          ///< a system text
  std::string user = {};                       ///< a question, up to where its answer begins
  std::string assistant = "{content}{eos}";    ///< an answer; what stands in it up to `{eos}` is learned
  std::string default_system = {};             ///< the system text where a conversation has none, as it is; empty: none
  std::string input = "{content}\n{input}";    ///< the question of an alpaca row that has an input
  std::string default_system_with_input = {};  ///< instead of default_system for such rows; empty: the same
  bool system_in_user = false;                 ///< the system text stands in the first question's `{content}`, not before it
  bool strip = false;                          ///< what is said loses white space at its ends
  bool rounds = false;                         ///< ChatGLM's own form, which no text here says (data/glm_chat.h)
  std::vector<std::string> reserved = {};      ///< what nobody may say: a built-in one's tags

  bool operator==(const PromptTemplate&) const = default;
};

/// llama2 (Meta's), vicuna (FastChat's v1.1), alpaca (Stanford's) or chatglm. Throws ConfigError, naming the nearest.
PromptTemplate prompt_template(std::string_view name);
std::vector<std::string> prompt_template_names();

/// Throws ConfigError for a text without its `{content}` (or with more than one), and for other words in braces; `where` opens
/// the message.
void check_prompt_template(const PromptTemplate& form, std::string_view where);

/// A piece of a template's text: text as it stands, or a place to be filled.
struct TemplatePiece {
  enum class Kind { kText, kContent, kInput, kBegin, kEnd, kRound };
  Kind kind = Kind::kText;
  std::string text = {};  ///< of kText
};
/// Throws ConfigError for an unknown word in braces; `where` opens the message.
std::vector<TemplatePiece> template_pieces(std::string_view text, std::string_view where);

/// All that a template says, for digests: equal for equal templates alone, whatever their names.
std::string template_description(const PromptTemplate& form);

}  // namespace lora::formats
