#pragma once

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

namespace lora::ops {

/// What F::apply computes. Without gradients no node is made, which is most of the cost of a small operation.
template <class F, class... Arguments>
auto applied(const Arguments&... arguments) -> decltype(F::forward(nullptr, arguments...)) {
  if (at::GradMode::is_enabled()) return F::apply(arguments...);
  torch::autograd::AutogradContext unused;
  return F::forward(&unused, arguments...);
}

}  // namespace lora::ops
