#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace lora::train {

/// Euclidean norm of all gradients together; when it exceeds max_norm (> 0) they are scaled in
/// place to that norm. Returns the norm before clipping; 0 for no gradients.
double clip_gradients(const std::vector<at::Tensor>& gradients, double max_norm);

}  // namespace lora::train
