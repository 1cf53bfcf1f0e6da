#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

namespace lora::nn {

/// How a layer makes its parameters.
struct ParameterOptions {
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  /// false leaves the memory uninitialised, for weights that are read from a file next.
  bool initialize = true;
  /// false: the weights of a model's layers hold no memory, read as NaN and come from elsewhere (nn::WeightStream). For
  /// Linear only.
  bool allocate = true;
};

}  // namespace lora::nn
