#include "lora/train/clip.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace lora::train {
namespace {

bool any_is_double(const std::vector<at::Tensor>& gradients) {
  return std::ranges::any_of(gradients, [](const auto& gradient) { return gradient.scalar_type() == at::kDouble; });
}

/// Each gradient's norm in `dtype`, then of these in double.
at::Tensor norm_in(const std::vector<at::Tensor>& gradients, at::ScalarType dtype) {
  const auto norms = at::_foreach_norm(gradients, 2, dtype);
  return at::stack(norms).to(at::kDouble).norm();
}

}  // namespace

at::Tensor gradient_norm(const std::vector<at::Tensor>& gradients) {
  if (gradients.empty()) return at::zeros({}, at::kDouble);
  return norm_in(gradients, any_is_double(gradients) ? at::kDouble : at::kFloat);
}

double clip_to_norm(const std::vector<at::Tensor>& gradients, double norm, double max_norm) {
  // Squares of finite fp32 numbers may overflow; in double they do not.
  if (!std::isfinite(norm) && !any_is_double(gradients)) norm = norm_in(gradients, at::kDouble).item<double>();
  if (max_norm > 0 && norm > max_norm) at::_foreach_mul_(gradients, max_norm / norm);
  return norm;
}

double clip_gradients(const std::vector<at::Tensor>& gradients, double max_norm) {
  return clip_to_norm(gradients, gradient_norm(gradients).item<double>(), max_norm);
}

}  // namespace lora::train
