#include "lora/data/glm_chat.h"

#include "core/check.h"
#include "data/prompt_and_answer.h"
#include "data/turns.h"
#include "lora/data/dataset.h"

namespace lora::data {

std::string glm_rounds(std::span<const Exchange> history, std::string_view query) {
  std::string prompt;
  size_t round = 0;
  for (const auto& [question, answer] : history) prompt += fmt::format("[Round {}]\n问：{}\n答：{}\n", round++, question, answer);
  return prompt + fmt::format("[Round {}]\n问：{}\n答：", round, query);
}

std::string glm_chat_prompt(std::span<const Exchange> history, std::string_view query) {
  return history.empty() ? std::string(query) : glm_rounds(history, query);
}

Example encode_glm_chat(const std::vector<Message>& messages, const Tokenizer& tokenizer) {
  auto [system, turns] = turns_of(messages);
  if (!system.empty()) turns.front() = system + "\n" + turns.front();
  const bool has_answer = turns.size() > 1;
  if (has_answer && turns.size() % 2 == 1) turns.pop_back();
  const size_t asked = has_answer ? turns.size() - 2 : 0;
  std::vector<Exchange> history;
  for (size_t i = 0; i < asked; i += 2) history.push_back({turns[i], turns[i + 1]});
  const auto prompt = encode_prompt(tokenizer, glm_chat_prompt(history, turns[asked]));
  return join(prompt, has_answer ? encode_completion(tokenizer, turns.back()) : std::vector<int64_t>{});
}

}  // namespace lora::data
