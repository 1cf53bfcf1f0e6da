#include "lora/formats/quantization.h"

#include <string>

#include "formats/json.h"
#include "lora/core/error.h"
#include "lora/core/file.h"
#include "support.h"

using namespace lora;
using namespace lora::formats;
using lora::testing::message_of;

namespace {

const std::string kPlain = R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [64, 192]})";
const std::string kNested = R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [64, 192], )"
                            R"("nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.2021983414888382})";

/// kNested with one text in another's place.
std::string with(const std::string& before, const std::string& after) {
  std::string text = kNested;
  const size_t at = text.find(before);
  REQUIRE(at != std::string::npos);
  return text.replace(at, before.size(), after);
}

void refuse_state(const std::string& json, const std::string& about) {
  INFO(json);
  const auto text = message_of<FormatError>([&] { parse_quant_state(json, "state"); });
  CHECK(text.starts_with("[state"));
  CHECK(text.find(about) != std::string::npos);
}

QuantizationConfig parse_config(const std::string& json) { return parse_quantization_config(json, "config.json"); }

void refuse_config(const std::string& json, const std::string& about) {
  INFO(json);
  const auto text = message_of<FormatError>([&] { parse_config(json); });
  CHECK(text.starts_with("[config.json"));
  CHECK(text.find(about) != std::string::npos);
}

}  // namespace

TEST_CASE("quant_state: read, and written to the byte as bitsandbytes does", "[formats]") {
  const QuantState plain = parse_quant_state(kPlain, "state");
  CHECK(plain == QuantState{QuantizedType::kNf4, 64, DType::kF32, {64, 192}, std::nullopt});
  const QuantState nested = parse_quant_state(kNested, "state");
  REQUIRE(nested.nested);
  CHECK(*nested.nested == QuantState::Nested{256, DType::kF32, 0.2021983414888382});
  for (const std::string& text : {kPlain, kNested, with("nf4", "fp4"), with("\"float32\"", "\"bfloat16\""),
                                  with("64, 192", "1, 1"), with("0.2021983414888382", "1.0"), with("0.2021983414888382", "1e-05"),
                                  with("0.2021983414888382", "0.0001"), with("0.2021983414888382", "-3.5e+20")}) {
    CHECK(write_quant_state(parse_quant_state(text, "state")) == text);
  }
}

TEST_CASE("quant_state: what bitsandbytes does not write is refused", "[formats]") {
  for (const char* text : {"", "[]", "null", "{", "{}", "\"nf4\"", "{\"quant_type\": \"nf4\"}"}) refuse_state(text, "state");
  refuse_state(with("\"nf4\"", "\"int4\""), "quant_type");
  refuse_state(with("\"nf4\"", "\"int8\""), "quant_type");
  refuse_state(with("\"nf4\"", "4"), "quant_type");
  for (const char* size : {"48", "16", "8192", "0", "-64", "64.0", "\"64\"", "null", "18446744073709551615"}) {
    refuse_state(with("\"blocksize\": 64", std::string("\"blocksize\": ") + size), "blocksize");
    refuse_state(with("\"nested_blocksize\": 256", std::string("\"nested_blocksize\": ") + size), "nested_blocksize");
  }
  refuse_state(with("\"float32\"", "\"float64\""), "dtype");
  refuse_state(with("\"nested_dtype\": \"float32\"", "\"nested_dtype\": 32"), "nested_dtype");
  for (const char* shape : {"[64]", "[64, 192, 1]", "[64, -192]", "[64, 0]", "[64.0, 192]", "[64, \"192\"]", "null", "{}", "64",
                            "[9223372036854775807, 2]", "[4294967296, 4294967296]", "[[64], 192]"}) {
    refuse_state(with("[64, 192]", shape), "shape");
  }
  for (const char* offset : {"null", "\"0.2\"", "1e300", "[]"}) refuse_state(with("0.2021983414888382", offset), "nested_offset");
  refuse_state(with("0.2021983414888382", "1e999"), "state");
  refuse_state(with(", \"nested_dtype\": \"float32\"", ""), "nested_dtype");
  refuse_state(with("\"quant_type\"", "\"extra\": 1, \"quant_type\""), "extra");
  refuse_state(with("\"quant_type\"", "\"quant_type\": \"fp4\", \"quant_type\""), "state");
  refuse_state(std::string(1 << 17, ' ') + kNested, "state");
}

TEST_CASE("quantization_config: bitsandbytes' is read and written, as in transformers' files", "[formats]") {
  for (const char* name : {"bnb4", "bnb4_dq"}) {
    const auto file = testing::reference_folder() / "peft" / name / "config.json";
    const Json object = parse_json(read_file(file), file.string()).at("quantization_config");
    const auto config = parse_config(object.dump());
    CHECK(config == QuantizationConfig{4, QuantizedType::kNf4, std::string(name) == "bnb4_dq", DType::kF32, std::nullopt});
    CHECK(Json::parse(write_quantization_config(config)) == object);
    CHECK(config.scheme() == QuantizationScheme{QuantizedType::kNf4, 64, std::string(name) == "bnb4_dq"});
  }
  const QuantizationConfig int8{8, QuantizedType::kInt8, false, DType::kBF16,
                                std::vector<std::string>{"lm_head", "model.layers.0"}};
  CHECK(parse_config(write_quantization_config(int8)) == int8);
  CHECK(parse_config(R"({"load_in_4bit": true})").type == QuantizedType::kFp4);
  CHECK(parse_config(R"({"load_in_8bit": true, "quant_method": "bitsandbytes"})").type == QuantizedType::kInt8);
}

TEST_CASE("quantization_config: skipped modules are named by beginning or end", "[formats]") {
  QuantizationConfig config;
  CHECK(config.skips("lm_head"));
  CHECK_FALSE(config.skips("model.layers.0.mlp.up_proj"));
  config.skip_modules = {"up_proj", "model.layers.1"};
  CHECK_FALSE(config.skips("lm_head"));
  CHECK(config.skips("model.layers.0.mlp.up_proj"));
  CHECK(config.skips("model.layers.1.mlp.down_proj"));
  CHECK_FALSE(config.skips("model.layers.10.mlp.down_proj"));
  CHECK_FALSE(config.skips("model.layers.0.mlp.group_proj"));
}

TEST_CASE("quantization_config: other methods are refused by name, wrong values too", "[formats]") {
  for (const char* method : {"gptq", "awq", "aqlm", "hqq", "compressed-tensors", "fp8"}) {
    refuse_config(std::string(R"({"bits": 4, "quant_method": ")") + method + "\"}", method);
    refuse_config(std::string(R"({"bits": 4, "quant_method": ")") + method + "\"}", "adapter.quantization");
  }
  refuse_config(R"({"bits": 4})", "load_in_4bit");
  refuse_config(R"({"load_in_4bit": true, "load_in_8bit": true})", "both");
  refuse_config(R"({"load_in_4bit": 1})", "load_in_4bit");
  refuse_config(R"({"load_in_4bit": true, "bnb_4bit_quant_type": "int4"})", "bnb_4bit_quant_type");
  refuse_config(R"({"load_in_4bit": true, "bnb_4bit_use_double_quant": "yes"})", "bnb_4bit_use_double_quant");
  refuse_config(R"({"load_in_4bit": true, "bnb_4bit_compute_dtype": "int8"})", "bnb_4bit_compute_dtype");
  refuse_config(R"({"load_in_4bit": true, "llm_int8_skip_modules": "lm_head"})", "llm_int8_skip_modules");
  refuse_config(R"({"load_in_4bit": true, "llm_int8_skip_modules": [1]})", "llm_int8_skip_modules");
  refuse_config(R"({"load_in_4bit": true, "quant_method": 4})", "quant_method");
  refuse_config("[]", "object");
}
