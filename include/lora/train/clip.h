#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace lora::train {

/// Euclidean norm of all gradients together; when it exceeds max_norm (> 0) they are scaled in
/// place to that norm. Returns the norm before clipping; 0 for no gradients.
double clip_gradients(const std::vector<at::Tensor>& gradients, double max_norm);

/// The same in two halves, between which the norm can wait on a GPU: a scalar in double on the gradients' device, and the
/// clipping by the number it turned out to be. The latter returns the true norm where that number had overflowed.
at::Tensor gradient_norm(const std::vector<at::Tensor>& gradients);
double clip_to_norm(const std::vector<at::Tensor>& gradients, double norm, double max_norm);

}  // namespace lora::train
