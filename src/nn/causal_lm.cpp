#include "lora/nn/causal_lm.h"

namespace lora::nn {

void CausalLMImpl::attach_prompt(const std::string& name, const std::shared_ptr<Prompt>& prompt) {
  if (!prompts_) prompts_ = register_module(PromptSlotImpl::kChildName, std::make_shared<PromptSlotImpl>());
  prompts_->attach(name, prompt);
}

at::ScalarType CausalLMImpl::stored_dtype() const {
  const auto all = parameters();
  return all.empty() ? at::kFloat : all.front().scalar_type();
}

int64_t CausalLMImpl::num_virtual_positions() const {
  if (!prompts_) return 0;
  const auto prefix = prompts_->prefix();
  return prompts_->length() - (prefix && !prefix_takes_positions() ? prefix->length() : 0);
}

Tensor CausalLMImpl::logits_of(const Tensor& states) {
  return head_group() != nullptr ? head_group()->forward(states, fast_paths) : head()->forward(states);
}

Tensor CausalLMImpl::forward(const Batch& batch, KvCache* cache) {
  const Tensor logits = logits_of(hidden(batch, cache));
  return logits.scalar_type() == at::kDouble ? logits : logits.to(at::kFloat);
}

}  // namespace lora::nn
