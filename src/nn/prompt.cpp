#include "lora/nn/prompt.h"

#include "core/check.h"

namespace lora::nn {

void PromptSlotImpl::attach(const std::string& name, const std::shared_ptr<Prompt>& prompt) {
  add(name, prompt);
  register_module(name, prompt);
}

void PromptSlotImpl::detach(const std::string& name) {
  if (!find(name)) return;
  remove(name);
  unregister_module(name);
}

int64_t PromptSlotImpl::length() const {
  int64_t sum = 0;
  for (const auto& prompt : contributing()) sum += prompt->length();
  return sum;
}

std::shared_ptr<Prompt> PromptSlotImpl::of_kind(bool is_prefix) const {
  std::shared_ptr<Prompt> found;
  for (const auto& prompt : contributing()) {
    if (prompt->is_prefix() != is_prefix) continue;
    require<ConfigError>(found == nullptr, "[nn.prompt] one {} may be active at a time; found two; activate one of them",
                         is_prefix ? "prefix" : "prompt of embeddings");
    found = prompt;
  }
  return found;
}

}  // namespace lora::nn
