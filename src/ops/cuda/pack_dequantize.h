// What one thread does with one pack of a quantised weight's numbers: the arithmetic of quantized.cu. It names nothing of
// CUDA's, so that the tests run the same code on the CPU. Packs are those of team_kernels.h.
#pragma once

#include <cstdint>

#include "ops/cuda/team_kernels.h"

namespace lora::ops::team {

using rows::team::kPackOf;
using rows::team::Pack;

/// 4 bits; see lora/ops/quantized.h. A pack has an even count of numbers of one block, or one number.
template <class T>
struct DequantizeFourBits {
  static constexpr int kWidestPack = kPackOf<T>;
  const uint8_t* codes;
  const float *map, *absmax;    ///< absmax null: double quantised
  const uint8_t* absmax_codes;  ///< and what scales are made from
  const float *nested_map, *nested_absmax;
  float nested_offset;
  int64_t block_size, nested_block_size;
  T* out;

  C10_HOST_DEVICE float scale_of(int64_t block) const {
    if (absmax != nullptr) return absmax[block];
    // Exact in double, so that it is rounded before the sum, as elsewhere.
    const double product = static_cast<double>(nested_map[absmax_codes[block]]) * nested_absmax[block / nested_block_size];
    return static_cast<float>(product) + nested_offset;
  }

  template <int kPack>
  C10_HOST_DEVICE void run(int64_t first) const {
    const float scale = scale_of(first / block_size);
    Pack<T, kPack> numbers;
    if constexpr (kPack == 1) {
      const int code = first % 2 == 0 ? codes[first / 2] >> 4 : codes[first / 2] & 15;
      numbers.at[0] = static_cast<T>(map[code] * scale);
    } else {
      const auto bytes = rows::team::load<kPack / 2>(codes + first / 2);
      for (int i = 0; i < kPack / 2; ++i) {
        numbers.at[2 * i] = static_cast<T>(map[bytes.at[i] >> 4] * scale);
        numbers.at[2 * i + 1] = static_cast<T>(map[bytes.at[i] & 15] * scale);
      }
    }
    rows::team::store(out + first, numbers);
  }
};

/// 8 bits. A pack is of one row.
template <class T>
struct DequantizeEightBits {
  static constexpr int kWidestPack = kPackOf<T>;
  const int8_t* codes;
  const float* absmax;
  int64_t width;
  T* out;

  template <int kPack>
  C10_HOST_DEVICE void run(int64_t first) const {
    const float scale = absmax[first / width];
    const auto read = rows::team::load<kPack>(codes + first);
    Pack<T, kPack> numbers;
    for (int i = 0; i < kPack; ++i) numbers.at[i] = static_cast<T>(static_cast<float>(read.at[i]) * scale * (1.0F / 127.0F));
    rows::team::store(out + first, numbers);
  }
};

}  // namespace lora::ops::team
