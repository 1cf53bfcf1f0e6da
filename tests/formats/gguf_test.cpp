#include "lora/formats/gguf.h"

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "formats/json.h"
#include "lora/core/error.h"
#include "lora/core/file.h"
#include "support.h"

using namespace lora::formats;
using lora::FormatError;
using lora::testing::message_of;

namespace {

const std::vector<std::string> kCases = {"lora", "lora_gqa", "rslora", "lora_all_linear_patterns"};

lora::Path fixture(const std::string& name) { return lora::testing::reference_folder() / "peft/gguf_lora" / name; }

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

GgufHeader parse(const std::string& file, const GgufLimits& limits = {}) { return parse_gguf(bytes_of(file), "a.gguf", limits); }

std::string refusal(const std::string& file, const GgufLimits& limits = {}) {
  const auto text = message_of<FormatError>([&] { parse(file, limits); });
  CHECK(text.starts_with("[a.gguf] byte "));
  return text;
}

template <class T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

std::string text(const std::string& value) { return raw<uint64_t>(value.size()) + value; }

/// A file from its parts, written out by hand.
struct Parts {
  uint32_t version = 3;
  uint64_t num_tensors = 0, num_keys = 0;
  std::string keys, tensors, data;

  void key(const std::string& name, uint32_t type, const std::string& value) {
    ++num_keys;
    keys += text(name) + raw(type) + value;
  }
  void tensor(const std::string& name, const std::vector<uint64_t>& sizes, uint32_t type, uint64_t offset) {
    ++num_tensors;
    tensors += text(name) + raw<uint32_t>(static_cast<uint32_t>(sizes.size()));
    for (const uint64_t size : sizes) tensors += raw(size);
    tensors += raw(type) + raw(offset);
  }
  std::string file(size_t alignment = 32) const {
    std::string out = "GGUF" + raw(version) + raw(num_tensors) + raw(num_keys) + keys + tensors;
    if (!data.empty()) out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
    return out + data;
  }
};

/// Two tensors of 3 and 4 floats.
Parts two_tensors() {
  Parts parts;
  parts.key("general.type", 8, text("adapter"));
  parts.tensor("a", {3}, 0, 0);
  parts.tensor("b", {2, 2}, 0, 32);
  parts.data = std::string(64, '\0');
  return parts;
}

std::string refusal_of(const std::function<void(Parts&)>& change) {
  Parts parts = two_tensors();
  change(parts);
  return refusal(parts.file());
}

}  // namespace

TEST_CASE("GGUF files are read as the official reader reads them", "[formats]") {
  for (const auto& name : kCases) {
    INFO(name);
    const std::string file = lora::read_file(fixture(name + ".gguf"));
    const auto expected = parse_json(lora::read_file(fixture(name + ".json")), name);
    const GgufHeader header = parse(file);
    CHECK(header.version == 3);
    CHECK(header.data_start == expected.at("data_offset").get<uint64_t>());
    CHECK(header.alignment == expected.at("alignment").get<uint64_t>());
    REQUIRE(header.metadata.size() == expected.at("keys").size());
    for (const char* key : {"general.architecture", "general.type", "adapter.type"}) {
      REQUIRE(header.find(key) != nullptr);
      REQUIRE(header.find(key)->as<std::string>() != nullptr);
      CHECK(*header.find(key)->as<std::string>() == expected.at("keys").at(key).get<std::string>());
    }
    REQUIRE(header.find("adapter.lora.alpha")->as<float>() != nullptr);
    CHECK(*header.find("adapter.lora.alpha")->as<float>() ==
          std::stof(expected.at("keys").at("adapter.lora.alpha").get<std::string>()));
    REQUIRE(header.tensors.size() == expected.at("tensors").size());
    for (const auto& tensor : header.tensors) {
      INFO(tensor.name);
      const auto sizes = expected.at("tensors").at(tensor.name).get<std::vector<int64_t>>();
      CHECK(tensor.shape == std::vector<int64_t>(sizes.rbegin(), sizes.rend()));
      CHECK(ggml_type_name(tensor.type) == "F32");
    }
  }
}

TEST_CASE("a GGUF header that was read is written again byte by byte", "[formats]") {
  for (const auto& name : kCases) {
    INFO(name);
    const std::string file = lora::read_file(fixture(name + ".gguf"));
    GgufHeader header = parse(file);
    const GgufHeader read = header;
    CHECK(write_gguf_header(header) == file.substr(0, read.data_start));
    CHECK(header.tensors.back().offset == read.tensors.back().offset);
  }
}

TEST_CASE("values of every type of GGUF come back", "[formats]") {
  GgufHeader header;
  const auto add = [&](const std::string& key, GgufValue value) { header.metadata.emplace_back(key, std::move(value)); };
  add("u8", {uint8_t{200}});
  add("i8", {int8_t{-3}});
  add("u16", {uint16_t{60000}});
  add("i16", {int16_t{-300}});
  add("u32", {uint32_t{4'000'000'000}});
  add("i32", {int32_t{-70000}});
  add("f32", {0.25f});
  add("bool", {true});
  add("string", {std::string("γλῶσσα")});
  add("u64", {uint64_t{1} << 63});
  add("i64", {int64_t{-1}});
  add("f64", {1e-300});
  add("array", {GgufArray{.item_type = 8, .items = {{std::string("x")}, {std::string()}}}});
  add("nested",
      {GgufArray{.item_type = 9, .items = {{GgufArray{.item_type = 4, .items = {{uint32_t{7}}}}}, {GgufArray{.item_type = 6}}}}});
  header.alignment = 64;
  add("general.alignment", {uint32_t{64}});
  header.tensors = {{.name = "t", .type = 1, .shape = {2, 3, 5}}, {.name = "scalar", .type = 28}};
  std::string file = write_gguf_header(header);
  CHECK(file.size() % 64 == 0);
  file += std::string(64 + 8, '\0');

  const GgufHeader read = parse(file);
  REQUIRE(read.metadata.size() == header.metadata.size());
  CHECK(read.alignment == 64);
  for (const auto& [key, value] : header.metadata) {
    INFO(key);
    const GgufValue& found = *read.find(key);
    REQUIRE(found.value.index() == value.value.index());
    if (found.as<GgufArray>() == nullptr) {
      std::visit(
          [&](const auto& item) {
            using T = std::decay_t<decltype(item)>;
            if constexpr (!std::is_same_v<T, GgufArray>) CHECK(item == *value.as<T>());
          },
          found.value);
    }
    if (key != "nested" && key != "array")
      CHECK((gguf_type_name(static_cast<uint32_t>(value.value.index())) == key || key == "general.alignment"));
  }
  CHECK(*read.find("array")->as<GgufArray>()->items.at(0).as<std::string>() == "x");
  const auto& nested = read.find("nested")->as<GgufArray>()->items;
  CHECK(*nested.at(0).as<GgufArray>()->items.at(0).as<uint32_t>() == 7);
  CHECK(nested.at(1).as<GgufArray>()->item_type == 6);
  CHECK(read.tensors.at(0).shape == std::vector<int64_t>{2, 3, 5});
  CHECK(read.tensors.at(0).bytes == 60);
  CHECK(read.tensors.at(1).offset == 64);
  CHECK(read.tensors.at(1).bytes == 8);
  CHECK(read.find("none") == nullptr);
}

TEST_CASE("sizes of GGUF tensors count whole blocks", "[formats]") {
  const auto bytes = [](uint32_t type, std::vector<int64_t> shape) { return ggml_tensor_bytes(type, shape); };
  CHECK(bytes(0, {2, 3}) == 24);
  CHECK(bytes(30, {}) == 2);
  CHECK(bytes(12, {4, 512}) == 4 * 2 * 144);
  CHECK(bytes(8, {3, 64}) == 3 * 2 * 34);
  CHECK(bytes(0, {5, 0}) == 0);
  CHECK_FALSE(bytes(12, {4, 300}));
  CHECK_FALSE(bytes(4, {4}));
  CHECK_FALSE(bytes(0, {int64_t{1} << 40, int64_t{1} << 40}));
  CHECK(ggml_type_of(lora::DType::kBF16) == 30);
  CHECK_FALSE(ggml_type_of(lora::DType::kF64));
}

TEST_CASE("GGUF files that lie are refused with the byte", "[formats]") {
  CHECK(parse(two_tensors().file()).tensors.size() == 2);
  CHECK(refusal("").starts_with("[a.gguf] byte 0"));
  CHECK(refusal("GGML" + two_tensors().file().substr(4)).find("found \"GGML\"") != std::string::npos);
  CHECK(refusal_of([](Parts& parts) { parts.version = 1; }).find("found 1") != std::string::npos);
  CHECK(refusal_of([](Parts& parts) { parts.version = 3u << 24; }).find("big-endian") != std::string::npos);
  // Numbers that promise more than the file has, up to the largest there are.
  for (const uint64_t wrong : {uint64_t{3}, uint64_t{1} << 40, UINT64_MAX}) {
    refusal_of([&](Parts& parts) { parts.num_tensors = wrong; });
    refusal_of([&](Parts& parts) { parts.num_keys = wrong; });
    refusal_of([&](Parts& parts) { parts.key("s", 8, raw<uint64_t>(wrong == 3 ? 400 : wrong) + "ab"); });
    refusal_of([&](Parts& parts) { parts.key("l", 9, raw<uint32_t>(10) + raw<uint64_t>(wrong == 3 ? 400 : wrong)); });
  }
  refusal_of([](Parts& parts) { parts.key("general.type", 0, "a"); });
  refusal_of([](Parts& parts) { parts.key("", 0, "a"); });
  refusal_of([](Parts& parts) { parts.key("\xff", 0, "a"); });
  refusal_of([](Parts& parts) { parts.key(std::string("a\0b", 3), 0, "a"); });
  refusal_of([](Parts& parts) { parts.key("flag", 7, "\2"); });
  CHECK(refusal_of([](Parts& parts) { parts.key("odd", 13, "a"); }).find("found 13") != std::string::npos);
  refusal_of([](Parts& parts) { parts.key("odd", 9, raw<uint32_t>(13) + raw<uint64_t>(0)); });
  refusal_of([](Parts& parts) {
    std::string deep;
    for (int i = 0; i < 6; ++i) deep += raw<uint32_t>(9) + raw<uint64_t>(1);
    parts.key("deep", 9, deep + raw<uint32_t>(0) + raw<uint64_t>(0));
  });
  for (const uint32_t alignment : {0u, 4u, 24u, 1u << 30}) {
    refusal_of([&](Parts& parts) { parts.key("general.alignment", 4, raw(alignment)); });
  }
  refusal_of([](Parts& parts) { parts.key("general.alignment", 10, raw<uint64_t>(32)); });
  refusal_of([](Parts& parts) { parts.tensor("a", {1}, 0, 64); });
  refusal_of([](Parts& parts) { parts.tensor(std::string(64, 'n'), {1}, 0, 64); });
  refusal_of([](Parts& parts) { parts.tensor("c", {1, 1, 1, 1, 1}, 0, 64); });
  refusal_of([](Parts& parts) { parts.tensor("c", {uint64_t{1} << 63}, 0, 64); });
  refusal_of([](Parts& parts) { parts.tensor("c", {uint64_t{1} << 62, 4}, 0, 64); });
  refusal_of([](Parts& parts) { parts.tensor("c", {1}, 4, 64); });
  refusal_of([](Parts& parts) { parts.tensor("c", {33}, 8, 64); });
  for (const uint64_t offset : {uint64_t{0}, uint64_t{32}, uint64_t{48}, uint64_t{96}, UINT64_MAX - 31}) {
    refusal_of([&](Parts& parts) { parts.tensor("c", {1}, 0, offset); });
  }
  refusal_of([](Parts& parts) { parts.tensor("c", {1}, 0, 64); });  // no data for it
  refusal_of([](Parts& parts) { parts.data += '\0'; });
  refusal_of([](Parts& parts) { parts.data.resize(47); });
  Parts unpadded = two_tensors();
  unpadded.data.resize(48);
  CHECK(parse(unpadded.file()).tensors.size() == 2);
}

TEST_CASE("no beginning of a GGUF file passes for one, and no changed byte harms", "[formats]") {
  const std::string file = lora::read_file(fixture("lora.gguf"));
  const uint64_t data_start = parse(file).data_start;
  for (size_t length = 0; length < file.size(); ++length) CHECK_THROWS_AS(parse(file.substr(0, length)), FormatError);
  for (size_t at = 0; at < data_start; ++at) {
    for (const int change : {1, 0x80, 0xFF}) {
      std::string changed = file;
      changed[at] = static_cast<char>(changed[at] ^ change);
      try {
        parse(changed);
      } catch (const FormatError&) {
        continue;
      }
    }
  }
}

TEST_CASE("a GGUF header may not take more memory than allowed", "[formats]") {
  Parts parts = two_tensors();
  parts.key("many", 9, raw<uint32_t>(0) + raw<uint64_t>(100) + std::string(100, '\0'));
  CHECK(parse(parts.file()).metadata.size() == 2);
  CHECK(refusal(parts.file(), {.max_items = 50}).find("at most 50") != std::string::npos);
  CHECK(refusal(parts.file(), {.max_header_bytes = 100}).find("at most 100 bytes") != std::string::npos);
}

TEST_CASE("what no reader takes back is not written", "[formats]") {
  const auto refused = [](const GgufHeader& given) {
    GgufHeader header = given;
    message_of<FormatError>([&] { write_gguf_header(header); });
  };
  const GgufValue value{uint8_t{1}};
  refused({.metadata = {{"a", value}, {"a", value}}});
  refused({.metadata = {{"", value}}});
  refused({.metadata = {{"\xff", value}}});
  refused({.metadata = {{"list", {GgufArray{.item_type = 4, .items = {value}}}}}});
  refused({.tensors = {{.name = std::string(64, 'n'), .shape = {1}}}});
  refused({.tensors = {{.name = "a", .shape = {1}}, {.name = "a", .shape = {1}}}});
  refused({.tensors = {{.name = "a", .type = 4, .shape = {1}}}});
  refused({.tensors = {{.name = "a", .shape = {1, 1, 1, 1, 1}}}});
  refused({.tensors = {{.name = "a", .shape = {-1}}}});
  refused({.alignment = 12});
}
