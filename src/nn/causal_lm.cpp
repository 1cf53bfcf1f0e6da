#include "lora/nn/causal_lm.h"

namespace lora::nn {

Tensor CausalLMImpl::forward(const Batch& batch, KvCache* cache) {
  const Tensor logits = head()->forward(hidden(batch, cache));
  return logits.scalar_type() == at::kDouble ? logits : logits.to(at::kFloat);
}

}  // namespace lora::nn
