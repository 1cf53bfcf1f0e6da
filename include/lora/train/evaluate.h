#pragma once

#include "lora/data/dataset.h"
#include "lora/nn/causal_lm.h"

namespace lora::train {

struct EvalResult {
  double loss = 0;  ///< mean over all targets
  int64_t rows = 0, targets = 0;
};

/// Loss of a data set, dropout off, without gradients; the model's mode is put back afterwards.
EvalResult evaluate(nn::CausalLMImpl& model, const data::Dataset& dataset, int64_t batch_size,
                    const at::Device& device, at::ScalarType amp_dtype, int64_t pad_id);

}  // namespace lora::train
