#include "data/turns.h"

#include <string_view>

#include "core/check.h"

namespace lora::data {

Turns turns_of(std::span<const Message> messages) {
  Turns turns;
  if (!messages.empty() && messages.front().role == "system") {
    turns.system = messages.front().content;
    messages = messages.subspan(1);
  }
  require<DataError>(!messages.empty(), "[chat] a conversation must have a user message; found none");
  for (const Message& message : messages) {
    const std::string_view expected = turns.contents.size() % 2 == 0 ? "user" : "assistant";
    require<DataError>(message.role == expected,
                       "[chat] roles must be user and assistant in turn, after at most one system "
                       "message; message {} after it is of {} instead of {}",
                       turns.contents.size() + 1, message.role, expected);
    turns.contents.push_back(message.content);
  }
  return turns;
}

}  // namespace lora::data
