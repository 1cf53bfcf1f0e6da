#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/dtype.h"
#include "lora/core/quantization.h"

namespace lora::formats {

/// What bitsandbytes writes beside a 4-bit weight, as JSON in the bytes of a tensor `NAME.quant_state.bitsandbytes__TYPE`.
/// Source: bitsandbytes 0.50.2 functional.py, QuantState.as_dict.
struct QuantState {
  /// The second level of double quantisation.
  struct Nested {
    int64_t block_size = 256;
    DType dtype = DType::kF32;
    double offset = 0;  ///< added to every scale
    bool operator==(const Nested&) const = default;
  };
  QuantizedType type = QuantizedType::kNf4;  ///< kNf4 or kFp4
  int64_t block_size = 64;
  DType dtype = DType::kF32;   ///< what was quantised, and what it becomes again
  std::vector<int64_t> shape;  ///< of the weight, (out, in)
  std::optional<Nested> nested;
  bool operator==(const QuantState&) const = default;
};

/// Throws FormatError for anything that bitsandbytes would not write, unknown keys included: a file that lies about a
/// weight must not be read as another weight. `where` opens the message.
QuantState parse_quant_state(std::string_view json, std::string_view where);
/// The same bytes as bitsandbytes'.
std::string write_quant_state(const QuantState& state);

/// `quantization_config` of a model's config.json with quant_method bitsandbytes.
struct QuantizationConfig {
  int64_t bits = 4;
  QuantizedType type = QuantizedType::kNf4;  ///< kInt8 for 8 bits
  bool double_quantized = false;
  DType compute_dtype = DType::kF32;
  /// Modules that stay as they are: by the beginning or the end of their names; nothing: the output head.
  std::optional<std::vector<std::string>> skip_modules;
  bool operator==(const QuantizationConfig&) const = default;

  /// Block size as in transformers, where no configuration names one.
  QuantizationScheme scheme() const { return {type, 64, double_quantized}; }
  /// Whether a module, by its full name, is one of those that stay.
  bool skips(std::string_view module) const;
};

/// Throws FormatError for other methods (gptq, awq, ...), by name and with advice, and for values of the wrong type.
QuantizationConfig parse_quantization_config(std::string_view json, std::string_view where);
/// The JSON object, as transformers writes it.
std::string write_quantization_config(const QuantizationConfig& config);

}  // namespace lora::formats
