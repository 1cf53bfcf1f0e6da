#include "lora/formats/llama2c.h"

#include <climits>
#include <cmath>
#include <cstring>
#include <map>
#include <string>

#include "lora/core/error.h"
#include "lora/core/file.h"
#include "support.h"

using lora::FormatError;
using lora::formats::Llama2cFile;
using lora::formats::looks_like_llama2c;
using lora::formats::parse_llama2c;
using lora::testing::message_of;

namespace {

std::string words(const std::vector<int64_t>& values) {
  std::string bytes;
  for (const int64_t value : values) {
    for (int i = 0; i < 4; ++i) bytes.push_back(static_cast<char>(value >> (8 * i) & 0xFF));
  }
  return bytes;
}

std::string version1(const std::vector<int64_t>& sizes, bool shared, int64_t version = 1) {
  std::string head = words({0x616b3432, version}) + words(sizes);
  head.push_back(shared ? 1 : 0);
  head.resize(256, '\0');
  return head;
}

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

Llama2cFile parse(const std::string& head, uint64_t size) { return parse_llama2c(bytes_of(head), size, "model.bin"); }

void refuse(const std::string& head, uint64_t size) {
  const auto text = message_of<FormatError>([&] { parse(head, size); });
  CHECK(text.starts_with("[model.bin]"));
}

// hidden 8, intermediate 12, 2 layers, 2 heads, 1 kv head, vocabulary 10, 6 positions, counted by
// hand:
constexpr uint64_t kPerLayer = 8 + 8 + 64 + 32 + 32 + 64 + 3 * 96;
constexpr uint64_t kShared = 80 + 2 * kPerLayer + 8;
constexpr uint64_t kLegacySize = 28 + 4 * (kShared + 2 * 6 * 2);
constexpr uint64_t kVersion1Size = 256 + 4 * kShared;
const std::vector<int64_t> kSizes = {8, 12, 2, 2, 1, 10, 6};

std::map<std::string, Llama2cFile::Tensor> by_name(const Llama2cFile& file) {
  std::map<std::string, Llama2cFile::Tensor> tensors;
  for (const auto& tensor : file.tensors) tensors[tensor.name] = tensor;
  return tensors;
}

/// Tensors lie one behind the other, but for `gap` bytes before the output head.
void check_tiling(const Llama2cFile& file, uint64_t begin, uint64_t gap, uint64_t end) {
  uint64_t position = begin;
  for (const auto& tensor : file.tensors) {
    if (tensor.name == "lm_head.weight") position += gap;
    CHECK(tensor.offset == position);
    uint64_t bytes = 4;
    for (const int64_t size : tensor.shape) bytes *= static_cast<uint64_t>(size);
    position += bytes;
  }
  if (file.tied_head) position += gap;
  CHECK(position == end);
}

}  // namespace

TEST_CASE("legacy llama2.c files are laid out by their header", "[formats]") {
  const auto file = parse(words(kSizes), kLegacySize);
  CHECK(file.version == 0);
  CHECK(file.tied_head);
  CHECK(file.num_kv_heads == 1);
  CHECK(file.max_positions == 6);
  CHECK(file.tensors.size() == 2 + 2 * 9);
  check_tiling(file, 28, 4 * 24, kLegacySize);
  const auto tensors = by_name(file);
  CHECK(tensors.at("model.embed_tokens.weight").offset == 28);
  CHECK(tensors.at("model.layers.1.input_layernorm.weight").offset == 28 + 4 * (80 + 8));
  CHECK(tensors.at("model.layers.0.self_attn.k_proj.weight").shape == std::vector<int64_t>{4, 8});
  CHECK(tensors.at("model.layers.0.mlp.down_proj.weight").shape == std::vector<int64_t>{8, 12});
  // w1, w2, w3 are gate, down, up.
  CHECK(tensors.at("model.layers.0.mlp.gate_proj.weight").offset < tensors.at("model.layers.0.mlp.down_proj.weight").offset);
  CHECK(tensors.at("model.layers.0.mlp.down_proj.weight").offset < tensors.at("model.layers.0.mlp.up_proj.weight").offset);

  auto untied = kSizes;
  untied[5] = -10;
  const auto own_head = parse(words(untied), kLegacySize + 4 * 80);
  CHECK_FALSE(own_head.tied_head);
  CHECK(own_head.vocab_size == 10);
  CHECK(own_head.tensors.back().name == "lm_head.weight");
  check_tiling(own_head, 28, 4 * 24, kLegacySize + 4 * 80);
}

TEST_CASE("version 1 llama2.c files are laid out by their header", "[formats]") {
  const auto file = parse(version1(kSizes, true), kVersion1Size);
  CHECK(file.version == 1);
  CHECK(file.tied_head);
  CHECK(file.tensors.front().name == "model.layers.0.input_layernorm.weight");
  check_tiling(file, 256, 0, kVersion1Size);
  const auto own_head = parse(version1(kSizes, false), kVersion1Size + 4 * 80);
  CHECK_FALSE(own_head.tied_head);
  check_tiling(own_head, 256, 0, kVersion1Size + 4 * 80);
}

TEST_CASE("llama2.c headers that lie are refused", "[formats]") {
  for (const uint64_t size : {uint64_t{0}, kLegacySize - 4, kLegacySize - 1, kLegacySize + 1, UINT64_MAX}) {
    refuse(words(kSizes), size);
    CHECK_FALSE(looks_like_llama2c(bytes_of(words(kSizes)), size));
  }
  refuse(version1(kSizes, false), kVersion1Size);
  refuse(version1(kSizes, true, 2), kVersion1Size);
  refuse(version1(kSizes, true, 0), kVersion1Size);
  refuse(words(kSizes).substr(0, 27), kLegacySize);
  refuse(version1(kSizes, true).substr(0, 36), kVersion1Size);
  refuse("", 0);
  for (size_t field = 0; field < kSizes.size(); ++field) {
    for (const int64_t value : {int64_t{0}, int64_t{-1}, int64_t{INT_MIN}, int64_t{INT_MAX}}) {
      auto sizes = kSizes;
      sizes[field] = value;
      INFO(field << " " << value);
      refuse(words(sizes), kLegacySize);
      // Version 1 stores nothing per position, so that any number of them fits.
      if (field != 6 || value <= 0) refuse(version1(sizes, true), kVersion1Size);
    }
  }
  // 3 heads do not divide 8, 3 kv heads do not divide 2, 8 heads leave a head of size 1.
  refuse(words({8, 12, 2, 3, 1, 10, 6}), kLegacySize);
  refuse(words({8, 12, 2, 2, 3, 10, 6}), kLegacySize);
  refuse(words({8, 12, 2, 8, 8, 10, 6}), kLegacySize);
  // All sizes near 2^31: the products overflow 64 bits.
  const int64_t big = 1 << 30;
  refuse(words({big, big, 10'000, 1, 1, big, big}), kLegacySize);
  refuse(words({big, big, big, 1, 1, big, big}), kLegacySize);
}

TEST_CASE("llama2.c files are recognised by magic or size", "[formats]") {
  CHECK(looks_like_llama2c(bytes_of(words(kSizes)), kLegacySize));
  CHECK(looks_like_llama2c(bytes_of(version1(kSizes, true)), 1));
  CHECK_FALSE(looks_like_llama2c(bytes_of(std::string(256, 'x')), 1000));
  CHECK_FALSE(looks_like_llama2c({}, 0));
}

TEST_CASE("the real stories260K files hold the same weights in both layouts", "[formats]") {
  const auto folder = lora::testing::outside_data("data/stories260K");
  if (!folder) return;
  const std::string legacy_bytes = lora::read_file(*folder / "stories260K.bin");
  const std::string version1_bytes = lora::read_file(*folder / "stories260K_v1.bin");
  const auto legacy = parse(legacy_bytes.substr(0, 256), legacy_bytes.size());
  const auto version1 = parse(version1_bytes.substr(0, 256), version1_bytes.size());
  CHECK(looks_like_llama2c(bytes_of(legacy_bytes).first(256), legacy_bytes.size()));
  for (const auto& file : {legacy, version1}) {
    CHECK(file.hidden_size == 64);
    CHECK(file.intermediate_size == 172);
    CHECK(file.num_layers == 5);
    CHECK(file.num_heads == 8);
    CHECK(file.num_kv_heads == 4);
    CHECK(file.vocab_size == 512);
    CHECK(file.max_positions == 512);
    CHECK(file.tied_head);
  }
  const auto a = by_name(legacy), b = by_name(version1);
  REQUIRE(a.size() == b.size());
  for (const auto& [name, tensor] : a) {
    INFO(name);
    const auto& other = b.at(name);
    CHECK(tensor.shape == other.shape);
    size_t bytes = 4;
    for (const int64_t size : tensor.shape) bytes *= static_cast<size_t>(size);
    CHECK(std::memcmp(legacy_bytes.data() + tensor.offset, version1_bytes.data() + other.offset, bytes) == 0);
  }
}
