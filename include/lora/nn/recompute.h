#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <vector>

#include "lora/nn/activation_store.h"

namespace lora::nn {

/// What a model computes twice so that it need not keep it for the backward pass.
enum class Recompute {
  kNone,
  kSelective,  ///< the feed-forward half of every layer, which keeps the most
  kFull,       ///< every layer: only what passes between layers is kept
};

/// function(inputs), keeping the inputs alone: what the backward pass needs is computed again then, with the random
/// numbers and the mixed precision of the first time, so that results are the same bit for bit on the CPU. Gradients
/// reach the inputs that ask for one, and the parameters that the function uses. Without gradients: just the function.
/// With a store the inputs are kept there instead of on their device.
/// Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
std::vector<at::Tensor> recomputed(std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)> function,
                                   const std::vector<at::Tensor>& inputs,
                                   const std::shared_ptr<ActivationStore>& store = nullptr);

}  // namespace lora::nn
