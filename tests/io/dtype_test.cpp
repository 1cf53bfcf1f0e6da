#include "lora/io/dtype.h"

#include "catch.h"
#include "lora/core/error.h"

using namespace lora;

TEST_CASE("every file type that torch holds maps there and back, with the same width", "[io]") {
  for (const DType dtype : {DType::kBool, DType::kU8, DType::kI8, DType::kF8E5M2, DType::kF8E4M3, DType::kF8E8M0,
                            DType::kF8E4M3FNUZ, DType::kF8E5M2FNUZ, DType::kI16, DType::kU16, DType::kF16, DType::kBF16,
                            DType::kI32, DType::kU32, DType::kF32, DType::kC64, DType::kF64, DType::kI64, DType::kU64}) {
    const c10::ScalarType type = io::to_torch(dtype, "test");
    CHECK(io::from_torch(type) == dtype);
    CHECK(c10::elementSize(type) * 8 == bits_of(dtype));
  }
  CHECK(io::to_torch(DType::kBF16, "test") == c10::kBFloat16);
  CHECK(io::to_torch(DType::kF8E4M3, "test") == c10::kFloat8_e4m3fn);
  CHECK(io::to_torch(DType::kI64, "test") == c10::kLong);
}

TEST_CASE("types that only one side has are refused", "[io]") {
  CHECK_THROWS_AS(io::to_torch(DType::kF4, "file"), FormatError);
  CHECK_THROWS_WITH(io::to_torch(DType::kF6E2M3, "file"), Catch::Contains("F6_E2M3"));
  CHECK_THROWS_AS(io::from_torch(c10::kQInt8), ShapeError);
  CHECK_THROWS_AS(io::from_torch(c10::kComplexDouble), ShapeError);
}
