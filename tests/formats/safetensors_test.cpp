#include "lora/formats/safetensors.h"

#include <cstring>
#include <string>
#include <vector>

#include "formats/json.h"
#include "lora/core/error.h"
#include "lora/core/file.h"
#include "support.h"

using namespace lora::formats;
using lora::DType;
using lora::FormatError;
using lora::testing::message_of;

namespace {

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string with_length(const std::string& header, uint64_t length) {
  std::string file(8, '\0');
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(length >> (8 * i) & 0xFF);
  return file + header;
}

/// A file with this header and `data_bytes` zeros.
std::string file_with(const std::string& header, size_t data_bytes) {
  return with_length(header, header.size()) + std::string(data_bytes, '\0');
}

SafetensorsHeader parse(const std::string& file, const SafetensorsLimits& limits = {}) {
  return parse_safetensors_header(bytes_of(file), file.size(), "a.safetensors", limits);
}

std::string refusal(const std::string& file, const SafetensorsLimits& limits = {}) {
  const auto text = message_of<FormatError>([&] { parse(file, limits); });
  CHECK(text.starts_with("[a.safetensors]"));
  return text;
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

}  // namespace

TEST_CASE("verdicts agree with the official reader", "[formats]") {
  const auto folder = lora::testing::reference_folder() / "safetensors_reader";
  const Json results = parse_json(lora::read_file(folder / "results.json"), "results.json");
  size_t agreed = 0;
  for (const auto& [name, verdict] : results["results"].items()) {
    INFO(name);
    const std::string file = lora::read_file(folder / name);
    const bool wanted = verdict["deserialize"] == "ok" && name != "duplicate_key.safetensors";
    try {
      const auto header = parse(file);
      REQUIRE(wanted);
      std::vector<std::string> names;
      for (const auto& tensor : header.tensors) names.push_back(tensor.name);
      std::sort(names.begin(), names.end());
      CHECK(Json(names) == verdict["keys"]);
      if (verdict["metadata"].is_null()) {
        CHECK(header.metadata.empty());
      } else {
        CHECK(Json(header.metadata) == verdict["metadata"]);
      }
    } catch (const FormatError& error) {
      INFO(error.what());
      CHECK_FALSE(wanted);
    }
    ++agreed;
  }
  CHECK(agreed == 69);
}

TEST_CASE("tensors come in the order of their data", "[formats]") {
  const auto header =
      parse(file_with("{" + entry("b", "F32", "[1,2]", "[0,8]") + "," + entry("a", "BF16", "[3]", "[8,14]") + "}", 14));
  REQUIRE(header.tensors.size() == 2);
  CHECK(header.tensors[0].name == "b");
  CHECK(header.tensors[0].dtype == DType::kF32);
  CHECK(header.tensors[0].shape == std::vector<int64_t>{1, 2});
  CHECK(header.tensors[1].begin == 8);
  CHECK(header.tensors[1].end == 14);
  CHECK(header.data_start == bytes_of(file_with("", 0)).size() + entry("b", "F32", "[1,2]", "[0,8]").size() +
                                 entry("a", "BF16", "[3]", "[8,14]").size() + 3);
}

TEST_CASE("sizes that overflow are refused", "[formats]") {
  for (const char* shape : {"[4294967296,4294967296]", "[9223372036854775807]", "[9223372036854775807,2]",
                            "[3037000500,3037000500]", "[4611686018427387904,4,0]", "[18446744073709551615]",
                            "[18446744073709551616]", "[1e3]", "[-0.0]", "[1,-1]", "[\"1\"]", "[null]", "[[1]]", "{}"}) {
    INFO(shape);
    refusal(file_with("{" + entry("a", "F32", shape, "[0,4]") + "}", 4));
    refusal(file_with("{" + entry("a", "F32", shape, "[0,0]") + "}", 0));
  }
  // 2^61 elements of 64 bits are 2^67 bits, which is 8 in 64 bits' arithmetic of bytes.
  refusal(file_with("{" + entry("a", "F64", "[2305843009213693952]", "[0,0]") + "}", 0));
  refusal(file_with("{" + entry("a", "F64", "[2305843009213693953]", "[0,8]") + "}", 8));
  CHECK(parse(file_with("{" + entry("a", "F32", "[0,9223372036854775807]", "[0,0]") + "}", 0)).tensors.size() == 1);
  std::string dimensions = "[1";
  for (int i = 0; i < 64; ++i) dimensions += ",1";
  refusal(file_with("{" + entry("a", "F32", dimensions + "]", "[0,4]") + "}", 4));
}

TEST_CASE("offsets that lie are refused", "[formats]") {
  for (const char* offsets : {"[0,18446744073709551615]", "[18446744073709551615,3]", "[0,18446744073709551620]", "[0,4.0]",
                              "[-4,0]", "[0]", "[]", "4", "[0,\"4\"]", "[4,0]", "[1,5]", "[0,8]"}) {
    INFO(offsets);
    refusal(file_with("{" + entry("a", "F32", "[1]", offsets) + "}", 4));
  }
}

TEST_CASE("header lengths that lie are refused before anything is read", "[formats]") {
  refusal("");
  refusal("1234567");
  refusal(with_length("{}", 3));
  refusal(with_length("{}", UINT64_MAX));
  refusal(with_length("{}", UINT64_MAX - 7));
  refusal(with_length("{}", 1ull << 63));
  refusal(file_with("{}", 0), {.max_header_bytes = 1});
  CHECK(parse(file_with("{}", 0), {.max_header_bytes = 2}).tensors.empty());
  const std::string file = file_with("{\"a\":{}}", 0);
  CHECK(safetensors_header_length(bytes_of(file).first(8), file.size(), "a.safetensors") == 8);
  // The head was read short.
  message_of<FormatError>([&] { parse_safetensors_header(bytes_of(file).first(12), file.size(), "a.safetensors"); });
  message_of<FormatError>([&] { parse_safetensors_header(bytes_of(file).first(4), file.size(), "a.safetensors"); });
  refusal(file_with("\xEF\xBB\xBF{}", 0));
}

TEST_CASE("the number of tensors, their names and their nesting are limited", "[formats]") {
  const std::string three = file_with("{" + entry("a", "U8", "[0]", "[0,0]") + "," + entry("b", "U8", "[0]", "[0,0]") + "," +
                                          entry("c", "U8", "[0]", "[0,0]") + "}",
                                      0);
  CHECK(parse(three, {.max_tensors = 3}).tensors.size() == 3);
  refusal(three, {.max_tensors = 1});
  refusal(file_with("{" + entry("a\\u0000b", "U8", "[0]", "[0,0]") + "}", 0));
  CHECK(parse(file_with("{" + entry("../\\n\xC3\xA9", "U8", "[0]", "[0,0]") + "}", 0)).tensors[0].name == "../\n\xC3\xA9");

  refusal(file_with("{\"a\":" + std::string(1'000'000, '['), 0));
  std::string numbers = "{\"a\":{\"dtype\":\"F32\",\"shape\":[1";
  for (int i = 0; i < 1'000'000; ++i) numbers += ",1";
  refusal(file_with(numbers + "],\"data_offsets\":[0,4]}}", 4));
}

TEST_CASE("written headers are read back", "[formats]") {
  std::vector<TensorEntry> tensors = {{.name = "z", .dtype = DType::kF32, .shape = {2, 3}},
                                      {.name = "a\"\n\xC3\xA9", .dtype = DType::kBF16, .shape = {5}},
                                      {.name = "a", .dtype = DType::kF32, .shape = {}},
                                      {.name = "empty", .dtype = DType::kI64, .shape = {0, 4}},
                                      {.name = "byte", .dtype = DType::kU8, .shape = {1}}};
  const std::string header = write_safetensors_header(tensors, {{"format", "pt"}});
  CHECK(header.size() % 8 == 0);
  const auto back = parse(header + std::string(4 + 24 + 10 + 1, '\0'));
  CHECK(back.metadata == std::map<std::string, std::string>{{"format", "pt"}});
  CHECK(back.data_start == header.size());
  REQUIRE(back.tensors.size() == 5);
  const char* const order[] = {"empty", "a", "z", "a\"\n\xC3\xA9", "byte"};
  for (size_t i = 0; i < 5; ++i) {
    CHECK(back.tensors[i].name == order[i]);
    CHECK(tensors[i].name == order[i]);
    CHECK(back.tensors[i].dtype == tensors[i].dtype);
    CHECK(back.tensors[i].shape == tensors[i].shape);
    CHECK(back.tensors[i].begin == tensors[i].begin);
    CHECK(back.tensors[i].end == tensors[i].end);
  }

  std::vector<TensorEntry> none;
  CHECK(parse(write_safetensors_header(none, {})).tensors.empty());
}

TEST_CASE("headers that nobody could read are not written", "[formats]") {
  for (const TensorEntry& bad :
       {TensorEntry{.name = "__metadata__", .shape = {1}}, TensorEntry{.name = "\xFF", .shape = {1}},
        TensorEntry{.name = std::string("a\0b", 3), .shape = {1}}, TensorEntry{.name = "b", .shape = {1}},
        TensorEntry{.name = "a", .shape = {-1}}, TensorEntry{.name = "a", .shape = {INT64_MAX, 2}},
        TensorEntry{.name = "a", .dtype = DType::kF4, .shape = {1}}}) {
    std::vector<TensorEntry> tensors = {{.name = "b", .shape = {1}}, bad};
    message_of<FormatError>([&] { write_safetensors_header(tensors, {}); });
  }
}

TEST_CASE("headers are laid out byte for byte as the reference writer does", "[formats]") {
  for (const char* name : {"lora/init/adapter_model.safetensors", "dora/init/adapter_model.safetensors",
                           "lora_modules_to_save/init/adapter_model.safetensors", "lora_bf16_base/expected.safetensors"}) {
    const auto path = lora::testing::outside_data(lora::Path("fixtures/peft") / name);
    if (!path) return;
    INFO(*path);
    const std::string file = lora::read_file(*path);
    const auto header = parse(file);
    std::vector<TensorEntry> reversed(header.tensors.rbegin(), header.tensors.rend());
    CHECK(write_safetensors_header(reversed, header.metadata) == file.substr(0, header.data_start));
  }
}

TEST_CASE("the index of a sharded model names plain files", "[formats]") {
  const auto index = parse_safetensors_index(
      R"({"metadata":{"total_size":8},"weight_map":{"b":"m-2.safetensors","a":"m-1.safetensors"}})", "index.json");
  CHECK(index == std::map<std::string, std::string>{{"a", "m-1.safetensors"}, {"b", "m-2.safetensors"}});
  for (const char* text :
       {"[]", "{}", "1", R"({"weight_map":{}})", R"({"weight_map":[]})", R"({"weight_map":null})", R"({"weight_map":{"a":1}})",
        R"({"weight_map":{"a":""}})", R"({"weight_map":{"a":".."}})", R"({"weight_map":{"a":"."}})",
        R"({"weight_map":{"a":"x/y"}})", R"({"weight_map":{"a":"/etc/passwd"}})", R"({"weight_map":{"a":"x\\y"}})",
        R"({"weight_map":{"a":"x\u0000"}})", R"({"weight_map":{"a\u0000":"x"}})", R"({"weight_map":{"a":"x","a":"y"}})"}) {
    INFO(text);
    message_of<FormatError>([&] { parse_safetensors_index(text, "index.json"); });
  }
}
