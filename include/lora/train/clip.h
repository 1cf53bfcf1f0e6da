#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace lora::train {

/// Euclidean norm of all gradients together; when it exceeds max_norm (> 0) they are scaled in
/// place to that norm. Returns the norm before clipping; 0 for no gradients.
double clip_gradients(const std::vector<at::Tensor>& gradients, double max_norm);

/// The same in pieces, between which the norm can wait on a GPU: a scalar in double on the gradients' device; the number
/// it turned out to be, or the true norm where that had overflowed; what to multiply gradients by.
at::Tensor gradient_norm(const std::vector<at::Tensor>& gradients);
double checked_norm(const std::vector<at::Tensor>& gradients, double norm);
double clip_factor(double norm, double max_norm);

}  // namespace lora::train
