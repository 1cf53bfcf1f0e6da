#include "lora/core/quantization.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "core/check.h"

namespace lora {
namespace {

constexpr std::array<std::pair<QuantizedType, std::string_view>, 3> kNames = {
    {{QuantizedType::kNf4, "nf4"}, {QuantizedType::kFp4, "fp4"}, {QuantizedType::kInt8, "int8"}}};
constexpr int64_t kLeastBlock = 32, kMostBlock = 4096;

}  // namespace

int64_t bits_of(QuantizedType type) { return type == QuantizedType::kInt8 ? 8 : 4; }

std::string_view name_of(QuantizedType type) { return kNames.at(static_cast<size_t>(type)).second; }

std::optional<QuantizedType> quantized_type_from(std::string_view name) {
  const auto found = std::ranges::find(kNames, name, [](const auto& entry) { return entry.second; });
  if (found == kNames.end()) return std::nullopt;
  return found->first;
}

bool is_quantized_block_size(int64_t size) {
  return size >= kLeastBlock && size <= kMostBlock && std::has_single_bit(static_cast<uint64_t>(size));
}

void check_quantization(const QuantizationScheme& scheme, std::string_view where) {
  require<ConfigError>(is_quantized_block_size(scheme.block_size),
                       "[{}] the block size must be a power of two from {} to {}; found {}; 64 is usual", where, kLeastBlock,
                       kMostBlock, scheme.block_size);
  require<ConfigError>(scheme.type != QuantizedType::kInt8 || !scheme.double_quantized,
                       "[{}] only scales of 4-bit weights can be quantised once more; found double quantisation of int8", where);
}

}  // namespace lora
