#include "formats/tensor_bytes.h"

namespace lora::formats {

std::optional<uint64_t> tensor_bytes(DType dtype, std::span<const int64_t> shape) {
  int64_t elements = 1;
  for (const int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(elements, size, &elements)) return std::nullopt;
  }
  int64_t bits = 0;
  const auto element_bits = static_cast<int64_t>(bits_of(dtype));
  if (__builtin_mul_overflow(elements, element_bits, &bits) || bits % 8 != 0) return std::nullopt;
  return static_cast<uint64_t>(bits / 8);
}

}  // namespace lora::formats
