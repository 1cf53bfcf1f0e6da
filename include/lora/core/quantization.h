#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace lora {

/// How a weight's numbers are written in few bits.
enum class QuantizedType {
  kNf4,   ///< 4 bits: quantiles of the normal distribution (Dettmers et al. 2023)
  kFp4,   ///< 4 bits: a sign, two bits of exponent, one of mantissa
  kInt8,  ///< 8 bits: 127ths of the row's largest magnitude (Dettmers et al. 2022)
};

/// What weights in few bits look like, in the words of bitsandbytes.
struct QuantizationScheme {
  QuantizedType type = QuantizedType::kNf4;
  int64_t block_size = 64;        ///< numbers that share a scale; kInt8: a row does, whatever this says
  bool double_quantized = false;  ///< the scales are in 8 bits themselves; kInt8: never
  bool operator==(const QuantizationScheme&) const = default;
};

int64_t bits_of(QuantizedType type);
/// nf4, fp4, int8.
std::string_view name_of(QuantizedType type);
/// Inverse of name_of; nothing for any other text.
std::optional<QuantizedType> quantized_type_from(std::string_view name);

/// Block sizes that bitsandbytes knows: powers of two from 32 to 4096.
bool is_quantized_block_size(int64_t size);
/// Throws ConfigError unless the block size is one of them; `where` opens the message.
void check_quantization(const QuantizationScheme& scheme, std::string_view where);

}  // namespace lora
