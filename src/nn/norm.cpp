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

std::pair<at::Tensor, at::Tensor> RmsNormImpl::forward_sum(const at::Tensor& x, const at::Tensor& delta,
                                                           const FastPaths& fast) {
  auto [sum, normed] = ops::add_rms_norm(x, delta, weight, eps, fast.fused_norm);
  return {sum, observed(*this, normed)};
}

}  // namespace lora::nn
