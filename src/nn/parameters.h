// Making parameters as ParameterOptions ask.
#pragma once

#include <ATen/ATen.h>

#include "lora/nn/parameter.h"

namespace lora::nn {

inline at::Tensor new_parameter(at::IntArrayRef shape, const ParameterOptions& options) {
  return at::empty(shape, at::TensorOptions().dtype(options.dtype).device(options.device));
}

}  // namespace lora::nn
