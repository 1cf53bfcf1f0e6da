#include "lora/core/random.h"

#include <cstddef>
#include <numeric>
#include <utility>

namespace lora {
namespace {

constexpr uint64_t kGoldenGamma = 0x9E3779B97F4A7C15u;

/// The output function of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64-bit numbers.
uint64_t scramble(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
  return value ^ (value >> 31);
}

}  // namespace

uint64_t mix_seed(std::initializer_list<uint64_t> parts) {
  uint64_t mixed = scramble(parts.size() + kGoldenGamma);
  for (const uint64_t part : parts) mixed = scramble((mixed ^ part) + kGoldenGamma);
  return mixed;
}

uint64_t SplitMix64::next() { return scramble(state_ += kGoldenGamma); }

uint64_t SplitMix64::below(uint64_t bound) {
  // 2^64 modulo bound: numbers under it would make the small results likelier.
  const uint64_t reject_below = (0 - bound) % bound;
  uint64_t drawn = next();
  while (drawn < reject_below) drawn = next();
  return drawn % bound;
}

double SplitMix64::uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }

std::vector<int64_t> permutation(int64_t count, uint64_t seed) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), int64_t{0});
  SplitMix64 generator(seed);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[generator.below(i)]);
  return order;
}

}  // namespace lora
