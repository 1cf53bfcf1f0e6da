#include <torch/csrc/autograd/custom_function.h>

#include "lora/ops/ops.h"

namespace lora::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Rotates each pair (i, i + K/2) by its angle.
Tensor rotated(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const auto halves = x.chunk(2, -1);
  return at::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin}, -1);
}

struct RotateHalf : torch::autograd::Function<RotateHalf> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& cos, const Tensor& sin) {
    const Tensor cos_x = cos.to(x.scalar_type()), sin_x = sin.to(x.scalar_type());
    context->save_for_backward({cos_x, sin_x});
    return rotated(x, cos_x, sin_x);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    return {rotated(gradients[0], saved[0], -saved[1]), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor rotate_half(const Tensor& x_BHSK, const Tensor& cos, const Tensor& sin) { return RotateHalf::apply(x_BHSK, cos, sin); }

}  // namespace lora::ops
