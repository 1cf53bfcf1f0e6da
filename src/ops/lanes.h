// What kernels share that are compiled once per instruction set.
#pragma once

#include <cstdint>

#define LORA_INLINE inline __attribute__((always_inline))
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LORA_HAS_VECTOR_KERNELS 1
#endif

namespace lora::ops {

/// bf16 as its bits: conversions by shifts become vector instructions, which those of c10::BFloat16
/// do not.
struct Bf16 {
  uint16_t bits;
};

template <class T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
/// The type in which numbers of type T are computed with.
template <class T>
using Wide = typename WideOf<T>::type;

enum class InstructionSet { kPlain, kAvx2, kAvx512 };

/// The best one of this processor for which there are kernels.
inline InstructionSet instruction_set() {
#ifdef LORA_HAS_VECTOR_KERNELS
  static const InstructionSet best = [] {
    __builtin_cpu_init();
    const bool avx2_too = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!avx2_too) return InstructionSet::kPlain;
    const bool avx512_too =
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return avx512_too ? InstructionSet::kAvx512 : InstructionSet::kAvx2;
  }();
  return best;
#else
  return InstructionSet::kPlain;
#endif
}

}  // namespace lora::ops
