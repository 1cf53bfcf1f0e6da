#include <torch/csrc/autograd/custom_function.h>

#include "lora/ops/ops.h"
#include "ops/rows.h"

namespace lora::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight_D, double eps) {
    const Tensor wide = x.to(rows::wide_type(x.scalar_type()));
    const Tensor inverse_rms = wide.square().mean(-1, /*keepdim=*/true).add_(eps).rsqrt_();
    context->save_for_backward({x, weight_D, inverse_rms});
    return (wide * inverse_rms).to(x.scalar_type()).mul_(weight_D.to(x.scalar_type()));
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight_D = saved[1], &inverse_rms = saved[2];
    const auto type = rows::wide_type(x.scalar_type());
    const Tensor normalized = x.to(type).mul(inverse_rms);
    const Tensor dy = gradients[0].to(type);

    Tensor dx, dweight_D;
    if (context->needs_input_grad(0)) {
      const Tensor dnormalized = dy * weight_D.to(type);
      const Tensor projection = (dnormalized * normalized).mean(-1, /*keepdim=*/true);
      dx = (dnormalized - normalized * projection).mul_(inverse_rms).to(x.scalar_type());
    }
    if (context->needs_input_grad(1)) {
      dweight_D = (dy * normalized).reshape({-1, x.size(-1)}).sum(0).to(weight_D.scalar_type());
    }
    return {dx, dweight_D, Tensor()};
  }
};

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight_D, double eps) { return RmsNorm::apply(x, weight_D, eps); }

}  // namespace lora::ops
