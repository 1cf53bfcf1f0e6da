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

}  // namespace lora::nn
