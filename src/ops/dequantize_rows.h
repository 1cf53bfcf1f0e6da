#pragma once

#include <ATen/core/Tensor.h>

#include "lora/io/quantized.h"

namespace lora::ops {

/// Whether a slab of rows may begin at every multiple of `rows`: where a block does.
bool can_begin_at(const io::QuantizedParts& parts, int64_t rows);
/// QuantizedTensor::dequantize_into for the rows from `first` on, as many as the target has; on the CPU.
void dequantize_rows(const io::QuantizedParts& parts, int64_t first, const at::Tensor& target);

}  // namespace lora::ops
