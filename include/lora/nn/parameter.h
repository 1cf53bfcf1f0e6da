#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <optional>

#include "lora/core/quantization.h"

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
  /// The weights of a model's layers are kept in few bits (LinearImpl::quantize_weight) from the moment that they are made;
  /// uninitialised ones hold no memory until somebody brings them. For Linear only.
  std::optional<QuantizationScheme> quantization = std::nullopt;
};

}  // namespace lora::nn
