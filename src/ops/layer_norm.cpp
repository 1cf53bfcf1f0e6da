#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "lora/ops/ops.h"
#include "ops/rows.h"

// Legend: N rows, D width.
namespace lora::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Results: the normed y; with a delta the sum, too.
struct AddLayerNorm : torch::autograd::Function<AddLayerNorm> {
  static variable_list forward(AutogradContext* context, const Tensor& x, const std::optional<Tensor>& delta,
                               const Tensor& weight_D, const Tensor& bias_D, double x_scale, double eps) {
    const int64_t width = x.size(-1), rows = x.numel() / width;
    const Tensor x_ND = x.reshape({rows, width}).contiguous();
    const Tensor delta_ND = delta ? delta->reshape({rows, width}).contiguous() : Tensor();
    const auto wide = rows::wide_type(x.scalar_type());
    const Tensor weight = weight_D.to(wide).contiguous(), bias = bias_D.to(wide).contiguous();
    Tensor sum_ND = delta ? at::empty_like(x_ND) : x_ND;
    Tensor y_ND = at::empty_like(delta ? delta_ND : x_ND);
    Tensor mean_N = at::empty({rows}, x.options().dtype(wide)), inverse_deviation_N = at::empty_like(mean_N);
    rows::add_layer_norm(x_ND, delta_ND, x_scale, weight, bias, eps, sum_ND, y_ND, mean_N, inverse_deviation_N);

    const Tensor sum = delta ? sum_ND.view(x.sizes()) : x;
    context->save_for_backward({sum, weight, mean_N, inverse_deviation_N});
    context->saved_data["x_scale"] = x_scale;
    context->saved_data["weight_type"] = static_cast<int64_t>(weight_D.scalar_type());
    context->saved_data["bias_type"] = static_cast<int64_t>(bias_D.scalar_type());
    context->saved_data["delta_type"] = static_cast<int64_t>(y_ND.scalar_type());
    context->set_materialize_grads(false);
    if (!delta) return {y_ND.view(x.sizes())};
    return {y_ND.view(x.sizes()), sum};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &sum = saved[0], &weight = saved[1], &mean_N = saved[2], &inverse_deviation_N = saved[3];
    const auto type_of = [&](const char* name) { return static_cast<at::ScalarType>(context->saved_data[name].toInt()); };
    const bool has_delta = gradients.size() > 1;
    const int64_t width = sum.size(-1), rows = sum.numel() / width;
    const Tensor sum_ND = sum.reshape({rows, width}).contiguous();
    Tensor dsum_ND;
    if (has_delta && gradients[1].defined()) {
      dsum_ND = gradients[1].reshape({rows, width}).to(sum.scalar_type()).contiguous();
    }
    variable_list results(6);
    if (gradients[0].defined()) {
      const Tensor dy_ND = gradients[0].reshape({rows, width}).to(type_of("delta_type")).contiguous();
      // An input that is not there counts for none in the context's numbering.
      const size_t of_weight = has_delta ? 2 : 1;
      if (context->needs_input_grad(of_weight)) {
        const auto wide = weight.scalar_type();
        const Tensor normed_ND = (sum_ND.to(wide) - mean_N.unsqueeze(1)).mul_(inverse_deviation_N.unsqueeze(1));
        results[2] = normed_ND.mul_(dy_ND).sum(0).to(type_of("weight_type"));
      }
      if (context->needs_input_grad(of_weight + 1)) {
        results[3] = dy_ND.to(weight.scalar_type()).sum(0).to(type_of("bias_type"));
      }
      const Tensor around_ND = dsum_ND;
      dsum_ND = at::empty_like(sum_ND);
      rows::layer_norm_backward(dy_ND, around_ND, sum_ND, weight, mean_N, inverse_deviation_N, dsum_ND);
    }
    if (!dsum_ND.defined()) return results;
    const double x_scale = context->saved_data["x_scale"].toDouble();
    const Tensor dsum = dsum_ND.view(sum.sizes());
    results[0] = x_scale == 1 ? dsum : dsum * x_scale;
    if (has_delta) results[1] = dsum.to(type_of("delta_type"));
    return results;
  }
};

/// In x's type, with statistics in the wide one.
Tensor plain_layer_norm(const Tensor& x, const Tensor& weight_D, const Tensor& bias_D, double eps) {
  const auto wide = rows::wide_type(x.scalar_type());
  return at::layer_norm(x.to(wide), {x.size(-1)}, weight_D.to(wide), bias_D.to(wide), eps).to(x.scalar_type());
}

}  // namespace

Tensor layer_norm(const Tensor& x, const Tensor& weight_D, const Tensor& bias_D, double eps, bool fused) {
  if (fused && rows::supports(x)) return AddLayerNorm::apply(x, std::nullopt, weight_D, bias_D, 1.0, eps)[0];
  return plain_layer_norm(x, weight_D, bias_D, eps);
}

std::pair<Tensor, Tensor> add_layer_norm(const Tensor& x, const Tensor& delta, double x_scale, const Tensor& weight_D,
                                         const Tensor& bias_D, double eps, bool fused) {
  if (fused && rows::supports(x, delta)) {
    const auto results = AddLayerNorm::apply(x, delta, weight_D, bias_D, x_scale, eps);
    return {results[1], results[0]};
  }
  const Tensor sum = at::add(delta, x, x_scale).to(x.scalar_type());
  return {sum, plain_layer_norm(sum, weight_D, bias_D, eps).to(delta.scalar_type())};
}

}  // namespace lora::ops
