// The GPU's kernels behind lora/ops/quantized.h. Twins: cuda/quantized.cu, and no_cuda/quantized.cpp for a build without them.
#pragma once

#include <ATen/core/Tensor.h>

#include "lora/io/quantized.h"

namespace lora::ops::cuda {

/// The numbers of `parts` into `target`: contiguous, in bf16, fp16, fp32 or double, on the parts' device.
void dequantize(const io::QuantizedParts& parts, const at::Tensor& target);

}  // namespace lora::ops::cuda
