#pragma once

#include <ATen/core/Tensor.h>

namespace lora::ops {

/// x (rows, columns), contiguous on the CPU, of numbers of 2, 4 or 8 bytes, as a contiguous (columns, rows).
at::Tensor transposed(const at::Tensor& x);

}  // namespace lora::ops
