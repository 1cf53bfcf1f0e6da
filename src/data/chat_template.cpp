#include "lora/data/chat_template.h"

#include <array>
#include <string_view>

#include "core/check.h"
#include "data/strip.h"
#include "data/turns.h"
#include "lora/data/dataset.h"
#include "lora/data/glm_chat.h"

namespace lora::data {
namespace {

constexpr std::array<std::string_view, 4> kTags = {"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"};

void check_content(const Message& message) {
  for (const std::string_view tag : kTags) {
    require<DataError>(message.content.find(tag) == std::string::npos,
                       "[chat] messages must not hold the template's tags; a {} message has {}; "
                       "remove it",
                       message.role, tag);
  }
}

/// The turns, the system text folded into the first.
std::vector<std::string> llama2_turns(const std::vector<Message>& messages) {
  auto [system, turns] = turns_of(messages);
  for (const Message& message : messages) check_content(message);
  const bool has_system = messages.front().role == "system";
  if (has_system) turns.front() = fmt::format("<<SYS>>\n{}\n<</SYS>>\n\n{}", system, turns.front());
  return turns;
}

void append(Example& example, const std::vector<int64_t>& ids, bool are_targets) {
  for (const int64_t id : ids) {
    example.input_ids.push_back(static_cast<int32_t>(id));
    example.labels.push_back(static_cast<int32_t>(are_targets ? id : kIgnoreLabel));
  }
}

}  // namespace

Example encode_llama2_chat(const std::vector<Message>& messages, const Tokenizer& tokenizer) {
  const std::vector<std::string> turns = llama2_turns(messages);
  Example example;
  for (size_t i = 0; i < turns.size(); i += 2) {
    append(example, encode_prompt(tokenizer, fmt::format("[INST] {} [/INST]", strip(turns[i]))),
           false);
    if (i + 1 == turns.size()) break;
    // Encoded apart from its prompt so that the boundary is known; the tokenizer's own leading
    // space is the one between the two.
    append(example, encode_completion(tokenizer, fmt::format("{} ", strip(turns[i + 1]))), true);
  }
  return example;
}

Example encode_chat(const std::vector<Message>& messages, const Tokenizer& tokenizer) {
  return tokenizer.glm_ids() ? encode_glm_chat(messages, tokenizer) : encode_llama2_chat(messages, tokenizer);
}

}  // namespace lora::data
