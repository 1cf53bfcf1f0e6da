#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace lora {

/// Element types of tensor files, in the order of the safetensors format (narrowest first): its
/// writer lays tensors out by it.
enum class DType {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3FNUZ,
  kF8E5M2FNUZ,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64
};

/// Bits of one element.
size_t bits_of(DType dtype);

/// Name in a safetensors header, for example "BF16".
std::string_view safetensors_name(DType dtype);
/// Inverse of safetensors_name; nothing for any other text.
std::optional<DType> dtype_from_safetensors(std::string_view name);

/// A floating compute type as users write it: fp32, bf16, fp16, and the names of PyTorch (float32,
/// bfloat16, float16, torch.bfloat16, float, half). Throws ConfigError otherwise; `where` opens the
/// message.
DType parse_float_dtype(std::string_view name, std::string_view where);

/// fp32, bf16, fp16; for other types the safetensors name.
std::string_view short_name(DType dtype);
/// What PyTorch calls it and Hugging Face writes into config.json: float32, bfloat16, uint8, ...;
/// the safetensors name for types that PyTorch has no name for.
std::string_view torch_name(DType dtype);

}  // namespace lora
