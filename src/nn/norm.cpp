#include "lora/nn/norm.h"

#include "lora/nn/probe.h"
#include "lora/ops/ops.h"
#include "nn/parameters.h"

namespace lora::nn {

RmsNormImpl::RmsNormImpl(int64_t size, double eps_, const ParameterOptions& parameters) : eps(eps_) {
  weight = register_parameter("weight", new_parameter({size}, parameters));
  const torch::NoGradGuard no_grad;
  if (parameters.initialize) weight.fill_(1);
}

at::Tensor RmsNormImpl::forward(const at::Tensor& x) { return observed(*this, ops::rms_norm(x, weight, eps)); }

std::pair<at::Tensor, at::Tensor> RmsNormImpl::forward_sum(const at::Tensor& x, const at::Tensor& delta, const FastPaths& fast) {
  auto [sum, normed] = ops::add_rms_norm(x, delta, weight, eps, fast.fused_norm);
  return {sum, observed(*this, normed)};
}

LayerNormImpl::LayerNormImpl(int64_t size, double eps_, const ParameterOptions& parameters) : eps(eps_) {
  ParameterOptions wide = parameters;
  if (wide.dtype == at::kHalf || wide.dtype == at::kBFloat16) wide.dtype = at::kFloat;
  weight = register_parameter("weight", new_parameter({size}, wide));
  bias = register_parameter("bias", new_parameter({size}, wide));
  const torch::NoGradGuard no_grad;
  if (!parameters.initialize) return;
  weight.fill_(1);
  bias.zero_();
}

at::Tensor LayerNormImpl::forward(const at::Tensor& x, const FastPaths& fast) {
  return observed(*this, ops::layer_norm(x, weight, bias, eps, fast.fused_norm));
}

at::Tensor LayerNormImpl::forward_sum(const at::Tensor& x, const at::Tensor& delta, double x_scale, const FastPaths& fast) {
  if (!delta.defined()) return forward(x, fast);
  const at::Tensor added = delta.to(x.scalar_type());
  return observed(*this, ops::add_layer_norm(x, added, x_scale, weight, bias, eps, fast.fused_norm).second);
}

}  // namespace lora::nn
