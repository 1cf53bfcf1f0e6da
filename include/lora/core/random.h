#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

namespace lora {

/// One well-mixed 64-bit number from several (splitmix64 chained): the same inputs give the same
/// number on every machine, so whatever is derived from it is a pure function of its seeds.
uint64_t mix_seed(std::initializer_list<uint64_t> parts);

/// A small generator for decisions outside tensors (shuffles, sampling); identical on every
/// platform.
class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t seed) : state_(seed) {}
  uint64_t next();
  /// Uniform in [0, bound); bound > 0.
  uint64_t below(uint64_t bound);
  /// Uniform in [0, 1).
  double uniform();

 private:
  uint64_t state_;
};

/// A permutation of 0..count-1 that depends on nothing but `count` and `seed`.
std::vector<int64_t> permutation(int64_t count, uint64_t seed);

}  // namespace lora
