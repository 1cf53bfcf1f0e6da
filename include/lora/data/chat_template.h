#pragma once

#include <string>
#include <vector>

#include "lora/data/example.h"
#include "lora/data/tokenizer.h"

namespace lora::data {

struct Message {
  std::string role;  ///< system | user | assistant
  std::string content;
};

/// A conversation in the Llama-2 template. Every completed turn is
/// `<s>[INST] user [/INST] answer </s>`, the answer and the end token being targets; the system
/// text is folded into the first user message; a last user message without an answer ends the
/// prompt. Throws DataError when roles do not alternate, the conversation is empty, or a content
/// holds a special tag
/// ([INST], [/INST], <<SYS>>, <</SYS>>). Source: meta-llama/llama generation.py.
Example encode_llama2_chat(const std::vector<Message>& messages, const Tokenizer& tokenizer);

/// A conversation in the template of the tokenizer's model: ChatGLM's (see glm_chat.h) or Llama-2's.
Example encode_chat(const std::vector<Message>& messages, const Tokenizer& tokenizer);

}  // namespace lora::data
