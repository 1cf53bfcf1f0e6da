#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lora/core/quantization.h"
#include "lora/io/model_files.h"
#include "lora/io/safetensors.h"

namespace lora::io {

/// A weight in few bits, as tensors: those of bitsandbytes' files. See ops::QuantizedTensor for what they mean.
struct QuantizedParts {
  QuantizationScheme scheme;
  DType dtype = DType::kF32;   ///< of the numbers that were quantised
  std::vector<int64_t> shape;  ///< (out, in)
  /// 4 bits: uint8 (ceil(out in / 2)), row after row, the first of two codes in the upper half. 8 bits: int8 (out, in).
  at::Tensor codes;
  at::Tensor map;                        ///< 4 bits: fp32 (16), the number of each code; 8 bits: undefined
  at::Tensor absmax;                     ///< fp32, one per block or (8 bits) row; double quantised: uint8
  at::Tensor nested_absmax, nested_map;  ///< double quantised: fp32 (nested blocks) and (256)
  float nested_offset = 0;
  int64_t nested_block_size = 256;
};

/// What a stored weight is, without its numbers.
struct StoredWeight {
  std::vector<int64_t> shape;
  DType dtype = DType::kF32;                 ///< of a quantised one: what it becomes again
  std::optional<QuantizationScheme> scheme;  ///< nothing: plain
};

/// The form and kind of a weight of a model's files. Throws FormatError when there is none or its companions lie.
StoredWeight stored_weight(const ModelFiles& files, const std::string& name);
/// Names of the tensors that a quantised weight has beside `name`, those that the files have.
std::vector<std::string> companions_of(const ModelFiles& files, const std::string& name);
/// Every part, checked against the others. Throws FormatError, IoError.
QuantizedParts read_quantized(const ModelFiles& files, const std::string& name);

/// The tensors to save a quantised weight as, under bitsandbytes' names; on any device.
std::vector<TensorSource> quantized_sources(const std::string& name, const std::shared_ptr<const QuantizedParts>& parts);

}  // namespace lora::io
