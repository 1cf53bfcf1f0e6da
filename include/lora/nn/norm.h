#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <utility>

#include "lora/nn/fast_paths.h"
#include "lora/nn/parameter.h"

namespace lora::nn {

/// Root-mean-square norm over the last dimension. weight: (size).
class RmsNormImpl : public torch::nn::Module {
 public:
  RmsNormImpl(int64_t size, double eps, const ParameterOptions& parameters = {});
  at::Tensor forward(const at::Tensor& x);
  /// The residual sum x + delta (delta undefined: x) and its norm.
  std::pair<at::Tensor, at::Tensor> forward_sum(const at::Tensor& x, const at::Tensor& delta, const FastPaths& fast);

  double eps;
  at::Tensor weight;
};
TORCH_MODULE(RmsNorm);

/// Mean and variance norm over the last dimension. weight, bias: (size), in fp32 where the options ask for half precision.
class LayerNormImpl : public torch::nn::Module {
 public:
  LayerNormImpl(int64_t size, double eps, const ParameterOptions& parameters = {});
  /// In the type of x.
  at::Tensor forward(const at::Tensor& x, const FastPaths& fast = {});
  /// The norm of the residual sum x_scale * x + delta (delta undefined: x), in the type of x.
  at::Tensor forward_sum(const at::Tensor& x, const at::Tensor& delta, double x_scale, const FastPaths& fast);

  double eps;
  at::Tensor weight, bias;
};
TORCH_MODULE(LayerNorm);

}  // namespace lora::nn
