#include "lora/data/chat_template.h"

#include <array>
#include <span>
#include <string_view>

#include "core/check.h"
#include "data/strip.h"
#include "lora/data/dataset.h"

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

/// The turns, user and assistant in alternation, the system text folded into the first.
std::vector<std::string> turns_of(std::span<const Message> messages) {
  std::string system;
  if (!messages.empty() && messages.front().role == "system") {
    check_content(messages.front());
    system = "<<SYS>>\n" + messages.front().content + "\n<</SYS>>\n\n";
    messages = messages.subspan(1);
  }
  require<DataError>(!messages.empty(),
                     "[chat] a conversation must have a user message; found none");
  std::vector<std::string> turns;
  for (const Message& message : messages) {
    const std::string_view expected = turns.size() % 2 == 0 ? "user" : "assistant";
    require<DataError>(message.role == expected,
                       "[chat] roles must be user and assistant in turn, after at most one system "
                       "message; message {} after it is of {} instead of {}",
                       turns.size() + 1, message.role, expected);
    check_content(message);
    turns.push_back(message.content);
  }
  turns.front() = system + turns.front();
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
  const std::vector<std::string> turns = turns_of(messages);
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

}  // namespace lora::data
