#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include "lora/ops/ops.h"
#include "ops/rows.h"

// Legend: N rows, O outputs.
namespace lora::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct ScaleColumns : torch::autograd::Function<ScaleColumns> {
  static Tensor forward(AutogradContext* context, const Tensor& y, const Tensor& scale_O, const std::optional<Tensor>& shift_O) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const auto wide = rows::wide_type(y.scalar_type());
    context->save_for_backward({y, scale_O});
    context->saved_data["has_shift"] = shift_O.has_value();
    context->saved_data["shift_type"] = static_cast<int64_t>(shift_O ? shift_O->scalar_type() : scale_O.scalar_type());
    Tensor scaled = y.to(wide) * scale_O.to(wide);
    if (shift_O) scaled.add_(shift_O->to(wide));
    return scaled.to(y.scalar_type());
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const auto saved = context->get_saved_variables();
    const Tensor &y = saved[0], &scale_O = saved[1];
    const auto wide = rows::wide_type(y.scalar_type());
    const Tensor d_NO = gradients[0].reshape({-1, scale_O.size(0)}).to(wide);
    variable_list results(3);
    if (context->needs_input_grad(0)) results[0] = (d_NO * scale_O.to(wide)).to(y.scalar_type()).view(y.sizes());
    if (context->needs_input_grad(1)) {
      results[1] = (d_NO * y.reshape({-1, scale_O.size(0)})).sum(0).to(scale_O.scalar_type());
    }
    if (context->saved_data["has_shift"].toBool() && context->needs_input_grad(2)) {
      results[2] = d_NO.sum(0).to(static_cast<at::ScalarType>(context->saved_data["shift_type"].toInt()));
    }
    return results;
  }
};

}  // namespace

Tensor scale_columns(const Tensor& y, const Tensor& scale_O, const Tensor& shift_O) {
  return ScaleColumns::apply(y, scale_O, shift_O.defined() ? std::optional(shift_O) : std::nullopt);
}

}  // namespace lora::ops
