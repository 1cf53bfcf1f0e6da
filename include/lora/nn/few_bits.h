#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <optional>

#include "lora/core/quantization.h"

namespace lora::nn {

/// What the weights that a model keeps in few bits take (LinearImpl::quantize_weight).
struct FewBits {
  std::optional<QuantizationScheme> scheme;  ///< of the first of them; nothing: all are plain
  int64_t layers = 0;
  uint64_t bytes = 0, plain_bytes = 0;  ///< now, and as the numbers that they stand for
};
FewBits few_bits_of(const torch::nn::Module& model);

}  // namespace lora::nn
