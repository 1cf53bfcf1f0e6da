// Dropout as a factor, so that products and their backward pass can share it.
#pragma once

#include <ATen/ATen.h>

namespace lora::adapters {

/// What dropout with this probability multiplies x with: 0, or 1 / (1 - probability); undefined for 0.
inline at::Tensor dropout_mask(const at::Tensor& x, double probability) {
  if (probability == 0) return {};
  return at::empty_like(x).bernoulli_(1 - probability).div_(1 - probability);
}

}  // namespace lora::adapters
