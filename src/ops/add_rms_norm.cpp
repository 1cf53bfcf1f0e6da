#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "lora/ops/ops.h"
#include "ops/apply.h"
#include "ops/rows.h"

namespace lora::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct AddRmsNorm : torch::autograd::Function<AddRmsNorm> {
  static variable_list forward(AutogradContext* context, const Tensor& x, const std::optional<Tensor>& delta,
                               const Tensor& weight_D, double eps) {
    const int64_t width = x.size(-1), rows = x.numel() / width;
    const Tensor x_ND = x.reshape({rows, width}).contiguous();
    const Tensor delta_ND = delta ? delta->reshape({rows, width}).contiguous() : Tensor();
    const auto wide = rows::wide_type(x.scalar_type());
    const Tensor weight = weight_D.to(wide).contiguous();
    Tensor sum_ND = delta ? at::empty_like(x_ND) : x_ND;
    Tensor y_ND = at::empty_like(delta ? delta_ND : x_ND);
    Tensor inverse_rms_N = at::empty({rows}, x.options().dtype(wide));
    rows::add_rms_norm(x_ND, delta_ND, weight, eps, sum_ND, y_ND, inverse_rms_N);

    const Tensor sum = delta ? sum_ND.view(x.sizes()) : x;
    context->save_for_backward({sum, weight, inverse_rms_N});
    context->saved_data["weight_type"] = static_cast<int64_t>(weight_D.scalar_type());
    context->saved_data["delta_type"] = static_cast<int64_t>(y_ND.scalar_type());
    context->set_materialize_grads(false);
    if (!delta) return {y_ND.view(x.sizes())};
    return {y_ND.view(x.sizes()), sum};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &sum = saved[0], &weight = saved[1], &inverse_rms_N = saved[2];
    const int64_t width = sum.size(-1), rows = sum.numel() / width;
    const Tensor sum_ND = sum.reshape({rows, width}).contiguous();
    const auto delta_type = static_cast<at::ScalarType>(context->saved_data["delta_type"].toInt());
    Tensor dsum_ND;
    if (gradients.size() > 1 && gradients[1].defined()) {
      dsum_ND = gradients[1].reshape({rows, width}).to(sum.scalar_type()).contiguous();
    }
    variable_list results(4);
    Tensor dx_ND = dsum_ND;
    if (gradients[0].defined()) {
      const Tensor dy_ND = gradients[0].reshape({rows, width}).to(delta_type).contiguous();
      dx_ND = at::empty_like(sum_ND);
      rows::rms_norm_backward(dy_ND, dsum_ND, sum_ND, weight, inverse_rms_N, dx_ND);
      const size_t of_weight = gradients.size() > 1 ? 2 : 1;
      if (context->needs_input_grad(of_weight)) {
        const auto weight_type = static_cast<at::ScalarType>(context->saved_data["weight_type"].toInt());
        results[2] = weight_gradient(dy_ND, sum_ND, inverse_rms_N, weight).to(weight_type);
      }
    }
    if (!dx_ND.defined()) return results;
    results[0] = dx_ND.view(sum.sizes());
    if (gradients.size() > 1) results[1] = results[0].to(delta_type);
    return results;
  }

  static Tensor weight_gradient(const Tensor& dy_ND, const Tensor& sum_ND, const Tensor& inverse_rms_N, const Tensor& like_D) {
    if (!dy_ND.is_cpu()) {
      const auto wide = like_D.scalar_type();
      return (dy_ND.to(wide) * sum_ND.to(wide)).mul_(inverse_rms_N.unsqueeze(1)).sum(0);
    }
    Tensor dweight_D = at::empty_like(like_D);
    rows::rms_norm_weight_gradient(dy_ND, sum_ND, inverse_rms_N, dweight_D);
    return dweight_D;
  }
};

}  // namespace

std::pair<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& weight_D, double eps, bool fused) {
  if (rows::applies(fused, x, "fused_norm") && rows::supports(x, delta)) {
    const auto results = applied<AddRmsNorm>(x, delta.defined() ? std::optional(delta) : std::nullopt, weight_D, eps);
    return {delta.defined() ? results[1] : x, results[0]};
  }
  const Tensor sum = delta.defined() ? x + delta : x;
  return {sum, rms_norm(sum, weight_D, eps).to(delta.defined() ? delta.scalar_type() : x.scalar_type())};
}

}  // namespace lora::ops
