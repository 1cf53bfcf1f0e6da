#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lora/data/chat_template.h"

namespace lora::data {

/// A question that was answered.
struct Exchange {
  std::string question, answer;
};

/// "[Round 0]\n问：question\n答：answer\n" for every exchange, then "[Round n]\n问：query\n答：".
std::string glm_rounds(std::span<const Exchange> history, std::string_view query);

/// What ChatGLM-6B is asked in a chat: the query alone at its beginning, glm_rounds afterwards.
/// Source: modeling_chatglm.py, `chat`.
std::string glm_chat_prompt(std::span<const Exchange> history, std::string_view query);

/// A conversation as one row: glm_chat_prompt [gMASK] <sop> answer <eop>, the last answer and its end being targets; earlier
/// ones are part of the prompt, because a row has one [gMASK]. Questions after the last answer are left out; without any
/// answer the row is a prompt. A system text comes before the first question, on lines of its own: ChatGLM-6B has no role for
/// it. Throws DataError when roles do not alternate or the conversation is empty.
Example encode_glm_chat(const std::vector<Message>& messages, const Tokenizer& tokenizer);

}  // namespace lora::data
