#pragma once

#include "lora/data/row_source.h"
#include "lora/nn/causal_lm.h"

namespace lora::train {

/// Held-out loss: the mean over all targets.
struct EvalResult {
  double loss = 0;  ///< mean over all targets; 0 when there are none
  int64_t rows = 0, targets = 0;
};

/// Loss of a data set in the order of its rows, dropout off, without gradients; afterwards every
/// module has its mode back. Throws ConfigError for a batch size below 1.
EvalResult evaluate(nn::CausalLMImpl& model, const data::RowSource& rows, int64_t batch_size, const at::Device& device,
                    at::ScalarType amp_dtype, int64_t pad_id);

}  // namespace lora::train
