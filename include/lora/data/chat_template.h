#pragma once

#include <string>
#include <vector>

#include "lora/data/example.h"
#include "lora/data/tokenizer.h"
#include "lora/formats/prompt_template.h"

namespace lora::data {

/// One turn of a conversation.
struct Message {
  std::string role;  ///< system | user | assistant
  std::string content;
};

/// The template of the tokenizer's model: chatglm or llama2.
formats::PromptTemplate model_template(const Tokenizer& tokenizer);

/// A conversation in a template: what its answers say, up to the template's `{eos}`, are targets. A last user message without an
/// answer ends the prompt. Text between special tokens is encoded as it reads on, whatever its pieces are.
///
/// Template chatglm gives encode_glm_chat's row with any tokenizer. With ChatGLM's tokenizer a row of every template is
/// `prompt [gMASK] <sop> answer <eop>`, where earlier answers are part of the prompt: a row has one [gMASK].
///
/// Throws DataError when roles do not alternate, the conversation is empty, or a content holds what the template reserves;
/// ConfigError for a template that check_prompt_template refuses.
Example encode_chat(const std::vector<Message>& messages, const Tokenizer& tokenizer, const formats::PromptTemplate& form);

/// In the template of the tokenizer's model.
Example encode_chat(const std::vector<Message>& messages, const Tokenizer& tokenizer);

}  // namespace lora::data
