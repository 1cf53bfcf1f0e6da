#pragma once

#include "lora/nn/causal_lm.h"

namespace lora::nn {

/// Sum over the batch's targets of -log p(next token), in fp32 (double for double); labels are shifted by one inside. Where
/// virtual tokens stand before the sequences as embeddings, these predict first tokens, as in PEFT.
/// Only rows of the hidden state that carry a label reach the output head. A zero with a gradient path when the batch
/// has no target.
Tensor causal_lm_loss_sum(CausalLMImpl& model, const Batch& batch);

}  // namespace lora::nn
