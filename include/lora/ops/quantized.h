#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "lora/core/quantization.h"
#include "lora/io/quantized.h"

namespace lora::ops {

using at::Tensor;

/// A matrix in few bits, bit for bit as bitsandbytes writes it and with the numbers that it stands for there. A value:
/// copies share memory, which nobody changes.
///
/// 4 bits: numbers are taken in blocks, row after row, wherever rows end. One is map[code] * absmax of its block; double
/// quantised, absmax is nested_map[code] * nested_absmax + nested_offset. 8 bits: code * absmax of its row / 127. Computed
/// in fp32, then rounded. Sources: Dettmers et al. 2022 (LLM.int8), 2023 (QLoRA); bitsandbytes 0.50.2 backends/default/ops.py.
class QuantizedTensor {
 public:
  /// weight: (out, in), a float type, any device (computed on the CPU); on the meta device a form without numbers. To the
  /// nearest number that the scheme has, the lower code of two. Throws ConfigError for a scheme that there is none of, and
  /// ShapeError for other weights.
  static QuantizedTensor quantize(const Tensor& weight, const QuantizationScheme& scheme);
  /// The parts belong together, as io::read_quantized makes sure.
  explicit QuantizedTensor(io::QuantizedParts parts);

  /// The numbers in a float type, (out, in).
  Tensor dequantize(at::ScalarType dtype) const;
  /// The same into memory of that form, contiguous, on the same device.
  void dequantize_into(Tensor target) const;

  QuantizedTensor to(const at::Device& device) const;
  at::Device device() const { return parts_->codes.device(); }
  const std::vector<int64_t>& shape() const { return parts_->shape; }
  const QuantizationScheme& scheme() const { return parts_->scheme; }
  const std::shared_ptr<const io::QuantizedParts>& parts() const { return parts_; }
  /// Of all parts.
  uint64_t bytes() const;

 private:
  std::shared_ptr<const io::QuantizedParts> parts_;
};

}  // namespace lora::ops
