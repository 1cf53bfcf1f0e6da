// Compiles the file that LORA_KERNELS names once per instruction set, inside a namespace and under the compiler options of
// that set: hence no include guard. LORA_BEST_OF (ops/lanes.h) chooses among what it defines. There kShuffledBytes is what one
// instruction can look up or move about at places that only the running program knows; 0: nothing.

namespace plain {
constexpr int kShuffledBytes = 0;
#include LORA_KERNELS
}  // namespace plain

#ifdef LORA_HAS_VECTOR_KERNELS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
constexpr int kShuffledBytes = 16;
#include LORA_KERNELS
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,prefer-vector-width=512")
namespace avx512 {
constexpr int kShuffledBytes = 64;
#include LORA_KERNELS
}  // namespace avx512
#pragma GCC pop_options
#else
namespace avx2 = plain;
namespace avx512 = plain;
#endif
#undef LORA_KERNELS
