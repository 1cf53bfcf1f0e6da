// Making parameters as ParameterOptions ask.
#pragma once

#include <ATen/ATen.h>

#include <limits>

#include "lora/nn/parameter.h"

namespace lora::nn {

inline at::TensorOptions tensor_options(const ParameterOptions& options) {
  return at::TensorOptions().dtype(options.dtype).device(options.device);
}

inline at::Tensor new_parameter(at::IntArrayRef shape, const ParameterOptions& options) {
  return at::empty(shape, tensor_options(options));
}

/// Form and type without memory: reads as NaN.
inline at::Tensor placeholder(at::IntArrayRef shape, const at::TensorOptions& options) {
  return at::full({1}, std::numeric_limits<double>::quiet_NaN(), options).expand(shape);
}

}  // namespace lora::nn
