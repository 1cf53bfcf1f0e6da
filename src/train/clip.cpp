#include "lora/train/clip.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace lora::train {
namespace {

/// Each gradient's norm in `dtype`, then of these in double.
double norm_of(const std::vector<at::Tensor>& gradients, at::ScalarType dtype) {
  const auto norms = at::_foreach_norm(gradients, 2, dtype);
  return at::stack(norms).to(at::kDouble).norm().item<double>();
}

}  // namespace

double clip_gradients(const std::vector<at::Tensor>& gradients, double max_norm) {
  if (gradients.empty()) return 0;
  const bool wide = std::ranges::any_of(
      gradients, [](const auto& gradient) { return gradient.scalar_type() == at::kDouble; });
  const auto dtype = wide ? at::kDouble : at::kFloat;
  double norm = norm_of(gradients, dtype);
  // Squares of finite fp32 numbers may overflow; in double they do not.
  if (!std::isfinite(norm) && !wide) norm = norm_of(gradients, at::kDouble);
  if (max_norm > 0 && norm > max_norm) at::_foreach_mul_(gradients, max_norm / norm);
  return norm;
}

}  // namespace lora::train
