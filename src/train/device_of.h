// Where a model computes.
#pragma once

#include <torch/nn/module.h>

namespace lora::train {

/// Where the model's parameters are.
inline at::Device device_of(const torch::nn::Module& model) {
  const auto parameters = model.parameters();
  return parameters.empty() ? at::Device(at::kCPU) : parameters.front().device();
}

}  // namespace lora::train
