#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include "lora/ops/autocast.h"
#include "lora/ops/ops.h"

// Legend: N rows, I inputs, O outputs, R rank.
namespace lora::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct LoraDelta : torch::autograd::Function<LoraDelta> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& a_RI, const Tensor& b_OR, double scale,
                        const std::optional<Tensor>& optional_mask) {
    const Tensor mask = optional_mask.value_or(Tensor());
    const auto dtype = compute_dtype(x.device().type(), x.scalar_type());
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const Tensor x_NI = dropped(x, mask, dtype);
    // Scaling the N x R product is cheaper than scaling the N x O one.
    const Tensor low_NR = x_NI.mm(a_RI.to(dtype).t()).mul_(scale);
    const Tensor y_NO = low_NR.mm(b_OR.to(dtype).t());

    context->save_for_backward({x, a_RI, b_OR, low_NR, mask});
    context->saved_data["scale"] = scale;
    auto shape = x.sizes().vec();
    shape.back() = b_OR.size(0);
    return y_NO.view(shape);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &a_RI = saved[1], &b_OR = saved[2], &low_NR = saved[3], &mask = saved[4];
    const double scale = context->saved_data["scale"].toDouble();
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const auto dtype = low_NR.scalar_type();
    const Tensor dy_NO = gradients[0].reshape({-1, b_OR.size(0)}).to(dtype);
    const Tensor dlow_NR = dy_NO.mm(b_OR.to(dtype)).mul_(scale);

    Tensor dx, da_RI, db_OR;
    if (context->needs_input_grad(0)) {
      dx = dlow_NR.mm(a_RI.to(dtype)).view(x.sizes());
      if (mask.defined()) dx.mul_(mask);
      dx = dx.to(x.scalar_type());
    }
    if (context->needs_input_grad(1)) {
      da_RI = dlow_NR.t().mm(dropped(x, mask, dtype)).to(a_RI.scalar_type());
    }
    if (context->needs_input_grad(2)) db_OR = dy_NO.t().mm(low_NR).to(b_OR.scalar_type());
    return {dx, da_RI, db_OR, Tensor(), Tensor()};
  }

  static Tensor dropped(const Tensor& x, const Tensor& mask, at::ScalarType dtype) {
    const Tensor x_NI = x.reshape({-1, x.size(-1)}).to(dtype);
    return mask.defined() ? x_NI * mask.reshape(x_NI.sizes()).to(dtype) : x_NI;
  }
};

}  // namespace

Tensor lora_delta(const Tensor& x, const Tensor& a_RI, const Tensor& b_OR, double scale, const Tensor& mask) {
  return LoraDelta::apply(x, a_RI, b_OR, scale, mask.defined() ? std::optional(mask) : std::nullopt);
}

}  // namespace lora::ops
