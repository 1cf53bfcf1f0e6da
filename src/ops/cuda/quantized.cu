// Launches of pack_dequantize.h: a thread per pack of numbers.
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstdint>

#include "ops/cuda/pack_dequantize.h"
#include "ops/quantized_cuda.h"

namespace lora::ops::cuda {
namespace {

constexpr int kThreads = 256;
/// More packs than these take are looped over.
constexpr int64_t kMostBlocks = int64_t{1} << 20;

template <int kPack, class Program>
__global__ void __launch_bounds__(kThreads) each_pack(int64_t packs, const __grid_constant__ Program program) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t pack = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; pack < packs; pack += step) {
    program.template run<kPack>(pack * kPack);
  }
}

template <int kPack, class Program>
void launch(int64_t numbers, const Program& program) {
  const int64_t packs = numbers / kPack;
  const auto blocks = static_cast<unsigned>(std::min((packs + kThreads - 1) / kThreads, kMostBlocks));
  each_pack<kPack><<<blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(packs, program);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

bool is_aligned(const at::Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0; }

/// With packs where they divide `unit` numbers, of which all have one scale.
template <class Program>
void run(const io::QuantizedParts& parts, const at::Tensor& target, int64_t unit, const Program& program) {
  const int64_t numbers = target.numel();
  if (unit % Program::kWidestPack == 0 && numbers % Program::kWidestPack == 0 && is_aligned(parts.codes) && is_aligned(target)) {
    launch<Program::kWidestPack>(numbers, program);
  } else {
    launch<1>(numbers, program);
  }
}

template <class T>
T* pointer(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(const_cast<void*>(tensor.const_data_ptr())) : nullptr;
}

template <class T>
void dequantize_to(const io::QuantizedParts& parts, const at::Tensor& target) {
  if (parts.scheme.type == QuantizedType::kInt8) {
    run(parts, target, parts.shape[1],
        team::DequantizeEightBits<T>{.codes = pointer<const int8_t>(parts.codes),
                                     .absmax = pointer<const float>(parts.absmax),
                                     .width = parts.shape[1],
                                     .out = pointer<T>(target)});
    return;
  }
  const bool nested = parts.scheme.double_quantized;
  run(parts, target, parts.scheme.block_size,
      team::DequantizeFourBits<T>{.codes = pointer<const uint8_t>(parts.codes),
                                  .map = pointer<const float>(parts.map),
                                  .absmax = nested ? nullptr : pointer<const float>(parts.absmax),
                                  .absmax_codes = nested ? pointer<const uint8_t>(parts.absmax) : nullptr,
                                  .nested_map = pointer<const float>(parts.nested_map),
                                  .nested_absmax = pointer<const float>(parts.nested_absmax),
                                  .nested_offset = parts.nested_offset,
                                  .block_size = parts.scheme.block_size,
                                  .nested_block_size = parts.nested_block_size,
                                  .out = pointer<T>(target)});
}

}  // namespace

void dequantize(const io::QuantizedParts& parts, const at::Tensor& target) {
  const c10::cuda::CUDAGuard guard(target.device());
  switch (target.scalar_type()) {
    case at::kBFloat16:
      return dequantize_to<c10::BFloat16>(parts, target);
    case at::kHalf:
      return dequantize_to<c10::Half>(parts, target);
    case at::kFloat:
      return dequantize_to<float>(parts, target);
    case at::kDouble:
      return dequantize_to<double>(parts, target);
    default:
      TORCH_CHECK(false, "[ops.dequantize] the numbers must become bf16, fp16, fp32 or double; found ", target.scalar_type());
  }
}

}  // namespace lora::ops::cuda
