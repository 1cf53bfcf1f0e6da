#include "lora/core/dtype.h"

#include <string>

#include "lora/core/error.h"
#include "support.h"

using lora::DType;
using lora::testing::message_of;

TEST_CASE("every dtype has the name and width of the safetensors format", "[core]") {
  const std::pair<const char*, size_t> expected[] = {
      {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
      {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
      {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}};
  int position = 0;
  for (const auto& [name, bits] : expected) {
    INFO(name);
    const auto dtype = lora::dtype_from_safetensors(name);
    REQUIRE(dtype.has_value());
    CHECK(static_cast<int>(*dtype) == position++);
    CHECK(lora::bits_of(*dtype) == bits);
    CHECK(lora::safetensors_name(*dtype) == name);
  }
  CHECK_FALSE(lora::dtype_from_safetensors("f32"));
  CHECK_FALSE(lora::dtype_from_safetensors("C128"));
  CHECK_FALSE(lora::dtype_from_safetensors(""));
}

TEST_CASE("compute dtypes are read in the words of users and of PyTorch", "[core]") {
  for (const char* name : {"fp32", "float32", "float", "torch.float32"}) {
    CHECK(lora::parse_float_dtype(name, "model.dtype") == DType::kF32);
  }
  for (const char* name : {"bf16", "bfloat16", "torch.bfloat16"}) {
    CHECK(lora::parse_float_dtype(name, "model.dtype") == DType::kBF16);
  }
  for (const char* name : {"fp16", "float16", "half", "torch.float16"}) {
    CHECK(lora::parse_float_dtype(name, "model.dtype") == DType::kF16);
  }
  for (const char* name : {"", "F32", "int8", "torch.", "fp8"}) {
    const auto text = message_of<lora::ConfigError>([&] { lora::parse_float_dtype(name, "model.dtype"); });
    CHECK(text.starts_with("[model.dtype]"));
  }
}

TEST_CASE("dtypes are shown in short and in PyTorch's words", "[core]") {
  CHECK(lora::short_name(DType::kF32) == "fp32");
  CHECK(lora::short_name(DType::kBF16) == "bf16");
  CHECK(lora::short_name(DType::kI64) == "I64");
  CHECK(lora::torch_name(DType::kF16) == "float16");
  CHECK(lora::torch_name(DType::kBF16) == "bfloat16");
  CHECK(lora::torch_name(DType::kU8) == "uint8");
}
