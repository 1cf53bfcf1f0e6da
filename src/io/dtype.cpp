#include "lora/io/dtype.h"

#include <array>
#include <utility>

#include "core/check.h"

namespace lora::io {
namespace {

using c10::ScalarType;

constexpr std::array kTypes = {
    std::pair{DType::kBool, ScalarType::Bool},
    std::pair{DType::kU8, ScalarType::Byte},
    std::pair{DType::kI8, ScalarType::Char},
    std::pair{DType::kF8E5M2, ScalarType::Float8_e5m2},
    std::pair{DType::kF8E4M3, ScalarType::Float8_e4m3fn},
    std::pair{DType::kF8E8M0, ScalarType::Float8_e8m0fnu},
    std::pair{DType::kF8E4M3FNUZ, ScalarType::Float8_e4m3fnuz},
    std::pair{DType::kF8E5M2FNUZ, ScalarType::Float8_e5m2fnuz},
    std::pair{DType::kI16, ScalarType::Short},
    std::pair{DType::kU16, ScalarType::UInt16},
    std::pair{DType::kF16, ScalarType::Half},
    std::pair{DType::kBF16, ScalarType::BFloat16},
    std::pair{DType::kI32, ScalarType::Int},
    std::pair{DType::kU32, ScalarType::UInt32},
    std::pair{DType::kF32, ScalarType::Float},
    std::pair{DType::kC64, ScalarType::ComplexFloat},
    std::pair{DType::kF64, ScalarType::Double},
    std::pair{DType::kI64, ScalarType::Long},
    std::pair{DType::kU64, ScalarType::UInt64},
};

}  // namespace

ScalarType to_torch(DType dtype, std::string_view where) {
  for (const auto& [file_type, torch_type] : kTypes) {
    if (file_type == dtype) return torch_type;
  }
  fail<FormatError>("[{}] element types must be ones that a tensor can hold; found {}; convert the file", where,
                    safetensors_name(dtype));
}

DType from_torch(ScalarType type) {
  for (const auto& [file_type, torch_type] : kTypes) {
    if (torch_type == type) return file_type;
  }
  fail<ShapeError>(
      "[tensor file] tensors to be saved must have a plain element type; found {}; convert it "
      "first",
      c10::toString(type));
}

}  // namespace lora::io
