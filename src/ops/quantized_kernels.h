// The kernels of quantized.cpp, which includes this file once per instruction set, inside a namespace and under the compiler
// options of that set: hence no include guard.

#include "ops/lane_numbers.h"

constexpr int64_t kCodesOfByte = 2, kTableSize = 16;

LORA_INLINE void store(Fp16& out, float value) { out.bits = c10::detail::fp16_ieee_from_fp32_value(value); }

LORA_INLINE float scale_of(const BlockScales& scales, int64_t block) {
  if (scales.codes == nullptr) return scales.absmax[block];
  return scales.nested_map[scales.codes[block]] * scales.nested_absmax[block / scales.nested_block_size] + scales.nested_offset;
}

/// The 16 numbers that a block has to choose from, as bits in the lower half or the whole of a lane.
typedef uint32_t Table __attribute__((vector_size(kTableSize * sizeof(uint32_t))));

LORA_INLINE Table bits_of_lanes(const Lanes<float>& lanes) { return std::bit_cast<Table>(lanes); }

/// store(Bf16&, float) for all lanes.
LORA_INLINE Table table_of(const Lanes<float>& numbers, Bf16) {
  const Table bits = bits_of_lanes(numbers);
  const Table rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16, quiet = (bits >> 16) | 0x40U;
  const Table is_nan = std::bit_cast<Table>((bits & 0x7fffffffU) > 0x7f800000U);
  return (quiet & is_nan) | (rounded & ~is_nan);
}
LORA_INLINE Table table_of(const Lanes<float>& numbers, Fp16) {
  uint32_t table[kTableSize];
#pragma omp simd
  for (int64_t i = 0; i < kTableSize; ++i) table[i] = c10::detail::fp16_ieee_from_fp32_value(numbers[i]);
  Table lanes;
  std::memcpy(&lanes, table, sizeof(lanes));
  return lanes;
}
LORA_INLINE Table table_of(const Lanes<float>& numbers, float) { return bits_of_lanes(numbers); }

LORA_INLINE Bf16 entry(const uint32_t* table, int code, Bf16) { return {static_cast<uint16_t>(table[code])}; }
LORA_INLINE Fp16 entry(const uint32_t* table, int code, Fp16) { return {static_cast<uint16_t>(table[code])}; }
LORA_INLINE float entry(const uint32_t* table, int code, float) { return std::bit_cast<float>(table[code]); }
LORA_INLINE double entry(const uint32_t* table, int code, double) { return std::bit_cast<float>(table[code]); }

/// Two numbers for each byte, the upper half's first.
template <class T>
LORA_INLINE void look_up_one_by_one(const uint8_t* codes, const Table& lanes, int64_t bytes, T* out) {
  uint32_t table[kTableSize];
  std::memcpy(table, &lanes, sizeof(table));
  for (int64_t i = 0; i < bytes; ++i) {
    out[2 * i] = entry(table, codes[i] >> 4, T());
    out[2 * i + 1] = entry(table, codes[i] & 15, T());
  }
}

/// Numbers of two bytes, 32 at once: of the table's 32 words every other one.
template <class T>
LORA_INLINE int64_t look_up_words(const uint8_t* codes, const Table& table, int64_t bytes, T* out) {
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  typedef uint16_t HalfWords __attribute__((vector_size(32)));
  typedef uint16_t Words __attribute__((vector_size(64)));
  int64_t i = 0;
  for (; i + 16 <= bytes; i += 16) {
    Bytes read;
    std::memcpy(&read, codes + i, sizeof(read));
    const Table wide = __builtin_convertvector(__builtin_convertvector(read, HalfWords), Table);
    const Table places = ((wide >> 3) & 0x1eU) | ((wide << 17) & 0x1e0000U);
    const Words found = __builtin_shuffle(std::bit_cast<Words>(table), std::bit_cast<Words>(places));
    std::memcpy(out + 2 * i, &found, sizeof(found));
  }
  return i;
}

/// Numbers of four bytes, 16 at once.
template <class T>
LORA_INLINE int64_t look_up_lanes(const uint8_t* codes, const Table& table, int64_t bytes, T* out) {
  typedef uint8_t Bytes __attribute__((vector_size(8)));
  typedef uint16_t Words __attribute__((vector_size(16)));
  typedef uint32_t HalfLanes __attribute__((vector_size(32)));
  typedef uint64_t Pairs __attribute__((vector_size(64)));
  int64_t i = 0;
  for (; i + 8 <= bytes; i += 8) {
    Bytes read;
    std::memcpy(&read, codes + i, sizeof(read));
    const HalfLanes half = __builtin_convertvector(__builtin_convertvector(read, Words), HalfLanes);
    const Pairs wide = __builtin_convertvector(half, Pairs);
    const Pairs places = (wide >> 4) | ((wide & 15) << 32);
    const Table found = __builtin_shuffle(table, std::bit_cast<Table>(places));
    std::memcpy(out + 2 * i, &found, sizeof(found));
  }
  return i;
}

/// Numbers of two bytes, by a table of lower bytes and one of upper ones.
template <class T>
LORA_INLINE int64_t look_up_by_bytes(const uint8_t* codes, const Table& table, int64_t bytes, T* out) {
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  struct Parts {
    Bytes at[4];
  };
  constexpr Bytes kFirst = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23},
                  kSecond = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31},
                  kEveryFourth = {0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28},
                  kLowerHalves = {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23};
  const Parts parts = std::bit_cast<Parts>(table);
  const auto bytes_at = [&](uint8_t place) {
    const Bytes first = __builtin_shuffle(parts.at[0], parts.at[1], kEveryFourth + place);
    const Bytes second = __builtin_shuffle(parts.at[2], parts.at[3], kEveryFourth + place);
    return Bytes(__builtin_shuffle(first, second, kLowerHalves));
  };
  const Bytes low = bytes_at(0), high = bytes_at(1);
  int64_t i = 0;
  for (; i + 16 <= bytes; i += 16) {
    Bytes read;
    std::memcpy(&read, codes + i, sizeof(read));
    const Bytes upper = read >> 4, lower = read & 15;
    const Bytes places[] = {__builtin_shuffle(upper, lower, kFirst), __builtin_shuffle(upper, lower, kSecond)};
    for (int64_t half = 0; half < 2; ++half) {
      const Bytes lows = __builtin_shuffle(low, places[half]), highs = __builtin_shuffle(high, places[half]);
      const Bytes found[] = {__builtin_shuffle(lows, highs, kFirst), __builtin_shuffle(lows, highs, kSecond)};
      std::memcpy(out + 2 * i + 16 * half, found, sizeof(found));
    }
  }
  return i;
}

template <class T>
LORA_INLINE void look_up(const uint8_t* codes, const Table& table, int64_t bytes, T* out) {
  int64_t done = 0;
  if constexpr (kShuffledBytes == 64 && sizeof(T) == 2) {
    done = look_up_words(codes, table, bytes, out);
  } else if constexpr (kShuffledBytes == 64 && sizeof(T) == 4) {
    done = look_up_lanes(codes, table, bytes, out);
  } else if constexpr (kShuffledBytes == 16 && sizeof(T) == 2) {
    done = look_up_by_bytes(codes, table, bytes, out);
  }
  if (done < bytes) look_up_one_by_one(codes + done, table, bytes - done, out + 2 * done);
}

/// Double numbers are fp32 ones.
template <class T>
using Rounded = std::conditional_t<std::is_same_v<T, double>, float, T>;

/// Blocks from `begin` to `end` of `count` numbers, those from `skipped` on into `out`. What a block has to choose from is
/// computed once.
template <class T>
void dequantize_blocks(const uint8_t* codes, const float* map, const BlockScales& scales, int64_t block_size, int64_t count,
                       int64_t skipped, T* out, int64_t begin, int64_t end) {
  const Lanes<float> numbers_of_map = load_lanes(map);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * block_size, numbers = std::min(block_size, count - first);
    const Table table = table_of(numbers_of_map * scale_of(scales, block), Rounded<T>());
    look_up(codes + first / kCodesOfByte, table, numbers / kCodesOfByte, out + (first - skipped));
    if (numbers % kCodesOfByte != 0) {
      T pair[kCodesOfByte];  // the second number is padding
      look_up_one_by_one(codes + (first + numbers) / kCodesOfByte, table, 1, pair);
      out[first - skipped + numbers - 1] = pair[0];
    }
  }
}

/// Rows from `begin` to `end` of 8 bits.
template <class T>
void dequantize_int8(const int8_t* codes, const float* absmax, int64_t width, T* out, int64_t begin, int64_t end) {
  constexpr float kPerStep = 1.0F / 127.0F;
  for (int64_t row = begin; row < end; ++row) {
    const int8_t* from = codes + row * width;
    T* to = out + row * width;
    const float scale = absmax[row];
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(to[i], static_cast<float>(from[i]) * scale * kPerStep);
  }
}

/// Magnitudes are ordered as their bits are; those that are not finite are the largest.
inline float largest_magnitude(const float* x, int64_t count) {
  int32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = static_cast<int32_t>(std::bit_cast<uint32_t>(x[i]) & 0x7fffffffU);
    largest = bits > largest ? bits : largest;
  }
  return std::bit_cast<float>(largest);
}

/// How many of the bounds lie below each of x / scale, cut at 1. The last block, when it is short, divides where the others
/// multiply: so does bitsandbytes.
inline void find_ranks(const float* x, int64_t count, float scale, bool divides, const float* bounds, int32_t* ranks) {
  const float factor = 1.0F / scale;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float scaled = divides ? x[i] / scale : x[i] * factor;
    const float above = scaled < -1.0F ? -1.0F : scaled;
    const float y = above > 1.0F ? 1.0F : above;
    int32_t rank = 0;
#pragma GCC unroll 15
    for (int64_t k = 0; k < kTableSize - 1; ++k) rank += y > bounds[k] ? 1 : 0;
    ranks[i] = rank;
  }
}

/// Blocks from `begin` to `end` of `count` numbers; `bounds` (15) lie between the numbers of the map, `order` (16) is the code
/// of each rank.
inline void quantize_blocks(const float* x, int64_t count, int64_t block_size, const float* bounds, const uint8_t* order,
                            uint8_t* codes, float* absmax, int64_t begin, int64_t end) {
  constexpr float kLeastScale = 1e-38F;
  int32_t ranks[kMostBlockNumbers + 1];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * block_size, numbers = std::min(block_size, count - first);
    const bool is_short = numbers < block_size;
    const float magnitude = largest_magnitude(x + first, numbers), scale = std::max(magnitude, kLeastScale);
    absmax[block] = is_short ? scale : magnitude;
    find_ranks(x + first, numbers, scale, is_short, bounds, ranks);
    if (numbers % kCodesOfByte != 0) find_ranks(&kPadding, 1, 1.0F, false, bounds, ranks + numbers);
    uint8_t* to = codes + first / kCodesOfByte;
    for (int64_t i = 0; i < (numbers + 1) / kCodesOfByte; ++i) {
      to[i] = static_cast<uint8_t>(order[ranks[2 * i]] << 4 | order[ranks[2 * i + 1]]);
    }
  }
}
