// Launches of team_kernels.h: a block of threads per row.
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "ops/cuda/team_kernels.h"
#include "ops/rows_cuda.h"

namespace lora::ops::rows::cuda {
namespace {

using team::Wide;

constexpr int kWarp = 32;
constexpr int kMostThreads = 512;
/// More rows than this are looped over.
constexpr int64_t kMostBlocks = int64_t{1} << 20;

/// The threads of a block; their number is a multiple of a warp's.
struct Block {
  __device__ int64_t rank() const { return threadIdx.x; }
  __device__ int64_t size() const { return blockDim.x; }

  template <class W>
  __device__ W sum(W value) const {
    return together(value, [](W a, W b) { return a + b; });
  }
  template <class W>
  __device__ W max(W value) const {
    return together(value, [](W a, W b) { return a > b ? a : b; });
  }

 private:
  template <class W, class Op>
  __device__ W together(W value, Op op) const {
    __shared__ W of_warp[kMostThreads / kWarp];
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      value = op(value, __shfl_xor_sync(0xffffffffU, value, offset));
    }
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = of_warp[0];
    for (int warp = 1; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) value = op(value, of_warp[warp]);
    __syncthreads();  // nobody writes for the next time while others still read
    return value;
  }
};

template <int kPack, class Program>
__global__ void __launch_bounds__(kMostThreads) each_row(int64_t rows, const __grid_constant__ Program program) {
  const Block block;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) program.template run<kPack>(block, row);
}

template <int kPack, class Program>
void launch(int64_t rows, int64_t numbers, const Program& program) {
  const int64_t packs = numbers / kPack, warps = (packs + kWarp - 1) / kWarp;
  const auto threads = static_cast<unsigned>(std::min<int64_t>(warps * kWarp, kMostThreads));
  const auto blocks = static_cast<unsigned>(std::min(rows, kMostBlocks));
  each_row<kPack><<<blocks, threads, 0, c10::cuda::getCurrentCUDAStream()>>>(rows, program);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

bool are_aligned(std::initializer_list<const Tensor*> tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const Tensor* tensor) {
    return !tensor->defined() || reinterpret_cast<uintptr_t>(tensor->const_data_ptr()) % 16 == 0;
  });
}

/// A block per row, with packs where they fit: `unit` is what they must divide, `numbers` what a row has at one time for its
/// threads, `tensors` all that is read or written in packs.
template <class Program>
void run(int64_t rows, int64_t unit, int64_t numbers, std::initializer_list<const Tensor*> tensors, const Program& program) {
  if (rows == 0 || numbers == 0) return;
  const c10::cuda::CUDAGuard guard((*tensors.begin())->device());
  if (unit % Program::kWidestPack == 0 && are_aligned(tensors)) {
    launch<Program::kWidestPack>(rows, numbers, program);
  } else {
    launch<1>(rows, numbers, program);
  }
}

template <class T>
T* pointer(const Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(const_cast<void*>(tensor.const_data_ptr())) : nullptr;
}

template <class Body>
void with_type(at::ScalarType type, const Body& body) {
  switch (type) {
    case at::kBFloat16:
      return body(c10::BFloat16());
    case at::kHalf:
      return body(c10::Half());
    case at::kFloat:
      return body(float());
    case at::kDouble:
      return body(double());
    default:
      TORCH_CHECK(false, "[ops.rows] tensors must be bf16, fp16, fp32 or double; found ", type);
  }
}

/// A residual of one type and activations of another: the same, or narrower than an fp32 residual.
template <class Body>
void with_types(const Tensor& x, const Tensor& y, const Body& body) {
  const auto wide = x.scalar_type(), narrow = y.scalar_type();
  if (wide == at::kFloat && narrow == at::kBFloat16) return body(float(), c10::BFloat16());
  if (wide == at::kFloat && narrow == at::kHalf) return body(float(), c10::Half());
  TORCH_CHECK(wide == narrow, "[ops.rows] a residual of type ", wide, " goes with activations of that type; found ", narrow);
  with_type(wide, [&](auto value) { body(value, value); });
}

}  // namespace

bool supports(at::ScalarType type) {
  return type == at::kBFloat16 || type == at::kHalf || type == at::kFloat || type == at::kDouble;
}

void add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& weight, double eps, Tensor& sum, Tensor& y,
                  Tensor& inverse_rms) {
  with_types(x, y, [&](auto x_type, auto y_type) {
    using X = decltype(x_type);
    using Y = decltype(y_type);
    using W = Wide<X>;
    const int64_t width = x.size(1);
    run(x.size(0), width, width, {&x, &delta, &weight, &sum, &y},
        team::AddRmsNorm<X, Y>{.x = pointer<const X>(x),
                               .delta = pointer<const Y>(delta),
                               .weight = pointer<const W>(weight),
                               .eps = static_cast<W>(eps),
                               .width = width,
                               .sum = pointer<X>(sum),
                               .y = pointer<Y>(y),
                               .inverse_rms = pointer<W>(inverse_rms)});
  });
}

void rms_norm_backward(const Tensor& dy, const Tensor& dsum, const Tensor& sum, const Tensor& weight, const Tensor& inverse_rms,
                       Tensor& dx) {
  with_types(sum, dy, [&](auto x_type, auto y_type) {
    using X = decltype(x_type);
    using Y = decltype(y_type);
    using W = Wide<X>;
    const int64_t width = sum.size(1);
    run(sum.size(0), width, width, {&dy, &dsum, &sum, &weight, &dx},
        team::RmsNormBackward<X, Y>{.dy = pointer<const Y>(dy),
                                    .dsum = pointer<const X>(dsum),
                                    .sum = pointer<const X>(sum),
                                    .weight = pointer<const W>(weight),
                                    .inverse_rms = pointer<const W>(inverse_rms),
                                    .width = width,
                                    .dx = pointer<X>(dx)});
  });
}

void add_layer_norm(const Tensor& x, const Tensor& delta, double x_scale, const Tensor& weight, const Tensor& bias, double eps,
                    Tensor& sum, Tensor& y, Tensor& mean, Tensor& inverse_deviation) {
  with_types(x, y, [&](auto x_type, auto y_type) {
    using X = decltype(x_type);
    using Y = decltype(y_type);
    using W = Wide<X>;
    const int64_t width = x.size(1);
    run(x.size(0), width, width, {&x, &delta, &weight, &bias, &sum, &y},
        team::AddLayerNorm<X, Y>{.x = pointer<const X>(x),
                                 .delta = pointer<const Y>(delta),
                                 .x_scale = static_cast<W>(x_scale),
                                 .weight = pointer<const W>(weight),
                                 .bias = pointer<const W>(bias),
                                 .eps = static_cast<W>(eps),
                                 .width = width,
                                 .sum = pointer<X>(sum),
                                 .y = pointer<Y>(y),
                                 .mean = pointer<W>(mean),
                                 .inverse_deviation = pointer<W>(inverse_deviation)});
  });
}

void layer_norm_backward(const Tensor& dy, const Tensor& dsum, const Tensor& sum, const Tensor& weight, const Tensor& mean,
                         const Tensor& inverse_deviation, Tensor& dx) {
  with_types(sum, dy, [&](auto x_type, auto y_type) {
    using X = decltype(x_type);
    using Y = decltype(y_type);
    using W = Wide<X>;
    const int64_t width = sum.size(1);
    run(sum.size(0), width, width, {&dy, &dsum, &sum, &weight, &dx},
        team::LayerNormBackward<X, Y>{.dy = pointer<const Y>(dy),
                                      .dsum = pointer<const X>(dsum),
                                      .sum = pointer<const X>(sum),
                                      .weight = pointer<const W>(weight),
                                      .mean = pointer<const W>(mean),
                                      .inverse_deviation = pointer<const W>(inverse_deviation),
                                      .width = width,
                                      .dx = pointer<X>(dx)});
  });
}

void gelu_tanh(const Tensor& x, Tensor& y) {
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const int64_t width = x.size(1);
    run(x.size(0), width, width, {&x, &y}, team::GeluTanh<T>{.x = pointer<const T>(x), .width = width, .y = pointer<T>(y)});
  });
}

void gelu_tanh_backward(const Tensor& dy, const Tensor& x, Tensor& dx) {
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const int64_t width = x.size(1);
    run(x.size(0), width, width, {&dy, &x, &dx},
        team::GeluTanhBackward<T>{.dy = pointer<const T>(dy), .x = pointer<const T>(x), .width = width, .dx = pointer<T>(dx)});
  });
}

void swiglu(const Tensor& gate_up, Tensor& h) {
  with_type(h.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const int64_t width = h.size(1);
    run(h.size(0), width, width, {&gate_up, &h},
        team::SwiGlu<T>{.gate_up = pointer<const T>(gate_up), .width = width, .h = pointer<T>(h)});
  });
}

void swiglu_backward(const Tensor& dh, const Tensor& gate_up, Tensor& dgate_up) {
  with_type(dh.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const int64_t width = dh.size(1);
    run(dh.size(0), width, width, {&dh, &gate_up, &dgate_up},
        team::SwiGluBackward<T>{
            .dh = pointer<const T>(dh), .gate_up = pointer<const T>(gate_up), .width = width, .dgate_up = pointer<T>(dgate_up)});
  });
}

void cross_entropy(Tensor& logits, const Tensor& labels, bool gradient, Tensor& losses) {
  with_type(logits.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const int64_t width = logits.size(1);
    run(logits.size(0), width, width, {&logits},
        team::CrossEntropy<T>{.logits = pointer<T>(logits),
                              .labels = pointer<const int64_t>(labels),
                              .gradient = gradient,
                              .width = width,
                              .losses = pointer<Wide<T>>(losses)});
  });
}

namespace {

/// split_rotated and join_rotated.
void move_heads(const Tensor& together, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos, const Tensor& sin,
                bool splits) {
  with_type(together.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using W = Wide<T>;
    const int64_t batch = q.size(0), heads = q.size(1), length = q.size(2), size = q.size(3), groups = k.size(1);
    const int64_t half = size / 2;
    run(batch * length, half, (heads + 2 * groups) * half, {&together, &q, &k, &v, &cos, &sin},
        team::MoveHeads<T>{.together = pointer<T>(together),
                           .q = pointer<T>(q),
                           .k = pointer<T>(k),
                           .v = pointer<T>(v),
                           .cos = pointer<const W>(cos),
                           .sin = pointer<const W>(sin),
                           .heads = heads,
                           .groups = groups,
                           .length = length,
                           .size = size,
                           .table_stride = cos.size(0) == 1 ? 0 : length * half,
                           .splits = splits});
  });
}

}  // namespace

void split_rotated(const Tensor& qkv, const Tensor& cos, const Tensor& sin, Tensor& q, Tensor& k, Tensor& v) {
  move_heads(qkv, q, k, v, cos, sin, /*splits=*/true);
}

void join_rotated(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& cos, const Tensor& sin, Tensor& dqkv) {
  move_heads(dqkv, dq, dk, dv, cos, sin, /*splits=*/false);
}

// AdamW: parameters are cut into chunks, a block each; a launch carries the addresses of many parameters.
namespace {

constexpr int kMostParameters = 128;
constexpr int64_t kChunk = 8192;
constexpr int kAdamWThreads = 256;

template <class G, class P>
struct AdamWTable {
  struct Entry {
    team::AdamW<G, P> parameter;
    const float* steps;
    int64_t size, first_block;
    bool aligned;
  };
  Entry entries[kMostParameters];
  int count = 0;
};

/// The numbers of all parameters; corrections come from each one's steps.
struct AdamWSettings {
  team::AdamWNumbers numbers;
  double beta1, beta2;
  bool corrects_bias;
};

template <class G, class P>
__global__ void __launch_bounds__(kAdamWThreads)
    adamw_chunks(const __grid_constant__ AdamWTable<G, P> table, const AdamWSettings settings) {
  constexpr int kPack = team::AdamW<G, P>::kWidestPack;
  const auto number = static_cast<int64_t>(blockIdx.x);
  int own = 0;
  while (own + 1 < table.count && table.entries[own + 1].first_block <= number) ++own;
  const auto& entry = table.entries[own];

  __shared__ team::AdamWNumbers numbers;
  if (threadIdx.x == 0) {
    numbers = settings.numbers;
    if (settings.corrects_bias) {
      const double steps = *entry.steps;
      numbers.rate = static_cast<float>(numbers.rate / team::bias_correction(settings.beta1, steps));
      numbers.inverse_root_correction2 = static_cast<float>(1 / std::sqrt(team::bias_correction(settings.beta2, steps)));
    }
  }
  __syncthreads();

  const Block block;
  const int64_t begin = (number - entry.first_block) * kChunk;
  const int64_t end = begin + kChunk < entry.size ? begin + kChunk : entry.size;
  if (entry.aligned && (end - begin) % kPack == 0) {
    entry.parameter.template run<kPack>(block, numbers, begin, end);
  } else {
    entry.parameter.template run<1>(block, numbers, begin, end);
  }
}

template <class G, class P>
void launch_adamw(const AdamWSettings& settings, const std::vector<AdamWTensors>& tensors) {
  for (size_t begin = 0; begin < tensors.size(); begin += kMostParameters) {
    AdamWTable<G, P> table;
    int64_t blocks = 0;
    for (size_t i = begin; i < std::min(tensors.size(), begin + kMostParameters); ++i) {
      const AdamWTensors& one = tensors[i];
      const int64_t size = one.parameter.numel();
      if (size == 0) continue;
      table.entries[table.count++] = {
          .parameter = {.gradient = pointer<const G>(one.gradient),
                        .master = pointer<float>(one.master),
                        .exp_avg = pointer<float>(one.exp_avg),
                        .exp_avg_sq = pointer<float>(one.exp_avg_sq),
                        .parameter = pointer<P>(one.parameter)},
          .steps = pointer<const float>(one.steps),
          .size = size,
          .first_block = blocks,
          .aligned = are_aligned({&one.gradient, &one.master, &one.exp_avg, &one.exp_avg_sq, &one.parameter})};
      blocks += (size + kChunk - 1) / kChunk;
    }
    if (blocks == 0) continue;
    adamw_chunks<<<static_cast<unsigned>(blocks), kAdamWThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(table, settings);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

}  // namespace

void joint_adamw(const AdamWStep& step, bool corrects_bias, const std::vector<AdamWTensors>& tensors) {
  if (tensors.empty()) return;
  const c10::cuda::CUDAGuard guard(tensors.front().parameter.device());
  const AdamWSettings settings{{.one_minus_beta1 = static_cast<float>(1 - step.beta1),
                                .beta2 = static_cast<float>(step.beta2),
                                .one_minus_beta2 = static_cast<float>(1 - step.beta2),
                                .eps = static_cast<float>(step.eps),
                                .decay = static_cast<float>(1 - step.learning_rate * step.weight_decay),
                                .rate = static_cast<float>(step.learning_rate),
                                .inverse_root_correction2 = 1.0F},
                               step.beta1,
                               step.beta2,
                               corrects_bias};
  std::vector<AdamWTensors> wide, narrow;
  for (const auto& one : tensors) (one.gradient.scalar_type() == at::kFloat ? wide : narrow).push_back(one);
  if (tensors.front().parameter.scalar_type() == at::kBFloat16) {
    launch_adamw<float, c10::BFloat16>(settings, wide);
    launch_adamw<c10::BFloat16, c10::BFloat16>(settings, narrow);
  } else {
    launch_adamw<float, c10::Half>(settings, wide);
    launch_adamw<c10::Half, c10::Half>(settings, narrow);
  }
}

}  // namespace lora::ops::rows::cuda
