// What kernels share that are compiled once per instruction set.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "ops/wide.h"

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

enum class InstructionSet { kPlain, kAvx2, kAvx512 };

/// The best one of this processor for which there are kernels.
inline InstructionSet instruction_set() {
#ifdef LORA_HAS_VECTOR_KERNELS
  static const InstructionSet best = [] {
    __builtin_cpu_init();
    const bool avx2_too = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!avx2_too) return InstructionSet::kPlain;
    const bool avx512_too = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return avx512_too ? InstructionSet::kAvx512 : InstructionSet::kAvx2;
  }();
  return best;
#else
  return InstructionSet::kPlain;
#endif
}

template <class Kernels>
const Kernels& best_of(const Kernels& plain, const Kernels& avx2, const Kernels& avx512) {
  if (instruction_set() == InstructionSet::kAvx512) return avx512;
  return instruction_set() == InstructionSet::kAvx2 ? avx2 : plain;
}
/// The kernels of this name (see ops/kernels_of_all_sets.h) for this processor.
#define LORA_BEST_OF(...) best_of(plain::__VA_ARGS__, avx2::__VA_ARGS__, avx512::__VA_ARGS__)

/// A tensor's memory as kernels see it, null for an undefined one.
template <class T>
T* pointer(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(const_cast<void*>(tensor.const_data_ptr())) : nullptr;
}

}  // namespace lora::ops
