#include "lora/core/dtype.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/check.h"

namespace lora {
namespace {

struct Row {
  DType dtype;
  size_t bits;
  std::string_view safetensors, torch;
};

constexpr std::array kRows = {
    Row{DType::kBool, 8, "BOOL", "bool"},
    Row{DType::kF4, 4, "F4", "F4"},
    Row{DType::kF6E2M3, 6, "F6_E2M3", "F6_E2M3"},
    Row{DType::kF6E3M2, 6, "F6_E3M2", "F6_E3M2"},
    Row{DType::kU8, 8, "U8", "uint8"},
    Row{DType::kI8, 8, "I8", "int8"},
    Row{DType::kF8E5M2, 8, "F8_E5M2", "float8_e5m2"},
    Row{DType::kF8E4M3, 8, "F8_E4M3", "float8_e4m3fn"},
    Row{DType::kF8E8M0, 8, "F8_E8M0", "float8_e8m0fnu"},
    Row{DType::kF8E4M3FNUZ, 8, "F8_E4M3FNUZ", "float8_e4m3fnuz"},
    Row{DType::kF8E5M2FNUZ, 8, "F8_E5M2FNUZ", "float8_e5m2fnuz"},
    Row{DType::kI16, 16, "I16", "int16"},
    Row{DType::kU16, 16, "U16", "uint16"},
    Row{DType::kF16, 16, "F16", "float16"},
    Row{DType::kBF16, 16, "BF16", "bfloat16"},
    Row{DType::kI32, 32, "I32", "int32"},
    Row{DType::kU32, 32, "U32", "uint32"},
    Row{DType::kF32, 32, "F32", "float32"},
    Row{DType::kC64, 64, "C64", "complex64"},
    Row{DType::kF64, 64, "F64", "float64"},
    Row{DType::kI64, 64, "I64", "int64"},
    Row{DType::kU64, 64, "U64", "uint64"},
};

constexpr bool rows_follow_the_enumeration() {
  for (size_t i = 0; i < kRows.size(); ++i) {
    if (kRows[i].dtype != static_cast<DType>(i)) return false;
  }
  return true;
}
static_assert(rows_follow_the_enumeration());

const Row& row(DType dtype) { return kRows.at(static_cast<size_t>(dtype)); }

constexpr std::array<std::pair<std::string_view, DType>, 8> kFloatNames = {{
    {"fp32", DType::kF32},
    {"float32", DType::kF32},
    {"float", DType::kF32},
    {"bf16", DType::kBF16},
    {"bfloat16", DType::kBF16},
    {"fp16", DType::kF16},
    {"float16", DType::kF16},
    {"half", DType::kF16},
}};

}  // namespace

size_t bits_of(DType dtype) { return row(dtype).bits; }

std::string_view safetensors_name(DType dtype) { return row(dtype).safetensors; }

std::optional<DType> dtype_from_safetensors(std::string_view name) {
  const auto found = std::ranges::find(kRows, name, &Row::safetensors);
  if (found == kRows.end()) return std::nullopt;
  return found->dtype;
}

DType parse_float_dtype(std::string_view name, std::string_view where) {
  constexpr std::string_view kTorchPrefix = "torch.";
  std::string_view bare = name;
  if (bare.starts_with(kTorchPrefix)) bare.remove_prefix(kTorchPrefix.size());
  const auto found = std::ranges::find(kFloatNames, bare, [](const auto& entry) { return entry.first; });
  require<ConfigError>(found != kFloatNames.end(), "[{}] the dtype must be fp32, bf16 or fp16; found {:?}; use one of them",
                       where, name);
  return found->second;
}

std::string_view short_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "fp32";
    case DType::kBF16:
      return "bf16";
    case DType::kF16:
      return "fp16";
    default:
      return safetensors_name(dtype);
  }
}

std::string_view torch_name(DType dtype) { return row(dtype).torch; }

}  // namespace lora
