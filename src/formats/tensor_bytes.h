// Sizes of tensors that a file claims, without overflow.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "lora/core/dtype.h"

namespace lora::formats {

/// Bytes of a dense tensor. Nothing when that is no whole number or does not fit 63 bits, or when a
/// dimension is negative. Dimensions are multiplied in order, so that a zero does not excuse an
/// overflow before it.
std::optional<uint64_t> tensor_bytes(DType dtype, std::span<const int64_t> shape);

}  // namespace lora::formats
