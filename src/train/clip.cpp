#include "lora/train/clip.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "ops/rows.h"

namespace lora::train {
namespace {

bool any_is_double(const std::vector<at::Tensor>& gradients) {
  return std::ranges::any_of(gradients, [](const auto& gradient) { return gradient.scalar_type() == at::kDouble; });
}

bool has_kernel(const at::Tensor& gradient) {
  return gradient.is_cpu() && gradient.scalar_type() == at::kBFloat16 && gradient.is_contiguous();
}

/// Each gradient's norm in `dtype`, then of these in double. The stock operation first copies bf16 to fp32.
at::Tensor norm_in(const std::vector<at::Tensor>& gradients, at::ScalarType dtype) {
  if (dtype == at::kFloat && std::ranges::all_of(gradients, has_kernel)) {
    double squares = 0;
    for (const auto& gradient : gradients) squares += ops::rows::sum_of_squares(gradient);
    return at::full({}, std::sqrt(squares), at::kDouble);
  }
  const auto norms = at::_foreach_norm(gradients, 2, dtype);
  return at::stack(norms).to(at::kDouble).norm();
}

}  // namespace

at::Tensor gradient_norm(const std::vector<at::Tensor>& gradients) {
  if (gradients.empty()) return at::zeros({}, at::kDouble);
  return norm_in(gradients, any_is_double(gradients) ? at::kDouble : at::kFloat);
}

double checked_norm(const std::vector<at::Tensor>& gradients, double norm) {
  // Squares of finite fp32 numbers may overflow; in double they do not.
  if (std::isfinite(norm) || any_is_double(gradients)) return norm;
  return norm_in(gradients, at::kDouble).item<double>();
}

double clip_factor(double norm, double max_norm) { return max_norm > 0 && norm > max_norm ? max_norm / norm : 1; }

double clip_gradients(const std::vector<at::Tensor>& gradients, double max_norm) {
  const double norm = checked_norm(gradients, gradient_norm(gradients).item<double>());
  const double factor = clip_factor(norm, max_norm);
  if (factor != 1) at::_foreach_mul_(gradients, factor);
  return norm;
}

}  // namespace lora::train
