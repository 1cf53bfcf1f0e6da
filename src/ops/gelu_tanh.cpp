#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "lora/ops/ops.h"
#include "ops/rows.h"

// Legend: N rows, F width.
namespace lora::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor as_rows(const Tensor& x) { return x.reshape({-1, x.dim() > 0 ? x.size(-1) : 1}).contiguous(); }

struct GeluTanh : torch::autograd::Function<GeluTanh> {
  static Tensor forward(AutogradContext* context, const Tensor& x) {
    const Tensor x_NF = as_rows(x);
    Tensor y_NF = at::empty_like(x_NF);
    rows::gelu_tanh(x_NF, y_NF);
    context->save_for_backward({x});
    return y_NF.view(x.sizes());
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const Tensor x = context->get_saved_variables()[0], x_NF = as_rows(x);
    const Tensor dy_NF = as_rows(gradients[0].to(x.scalar_type()));
    Tensor dx_NF = at::empty_like(x_NF);
    rows::gelu_tanh_backward(dy_NF, x_NF, dx_NF);
    return {dx_NF.view(x.sizes())};
  }
};

}  // namespace

Tensor gelu_tanh(const Tensor& x, bool fused) {
  if (fused && x.numel() > 0 && rows::supports(x)) return GeluTanh::apply(x);
  return at::gelu(x, "tanh");
}

}  // namespace lora::ops
