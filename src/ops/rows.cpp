#include "ops/rows.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "core/check.h"
#include "core/once.h"
#include "ops/lanes.h"
#include "ops/rows_cuda.h"

namespace lora::ops::rows {
namespace {

/// The kernels of one instruction set.
template <class X, class Y>
struct NormKernels {
  void (*add_rms_norm)(const X* x, const Y* delta, const Wide<X>* weight, Wide<X> eps, int64_t width, X* sum, Y* y,
                       Wide<X>* inverse_rms, int64_t begin, int64_t end);
  void (*rms_norm_backward)(const Y* dy, const X* dsum, const X* sum, const Wide<X>* weight, const Wide<X>* inverse_rms,
                            int64_t width, X* dx, int64_t begin, int64_t end);
  void (*add_layer_norm)(const X* x, const Y* delta, Wide<X> x_scale, const Wide<X>* weight, const Wide<X>* bias, Wide<X> eps,
                         int64_t width, X* sum, Y* y, Wide<X>* mean, Wide<X>* inverse_deviation, int64_t begin, int64_t end);
  void (*layer_norm_backward)(const Y* dy, const X* dsum, const X* sum, const Wide<X>* weight, const Wide<X>* mean,
                              const Wide<X>* inverse_deviation, int64_t width, X* dx, int64_t begin, int64_t end);
  void (*rms_norm_weight_gradient)(const Y* dy, const X* sum, const Wide<X>* inverse_rms, int64_t rows, int64_t width,
                                   Wide<X>* dweight, int64_t begin, int64_t end);
};
template <class T>
struct RowKernels {
  void (*swiglu)(const T* gate_up, int64_t width, T* h, int64_t begin, int64_t end);
  void (*swiglu_backward)(const T* dh, const T* gate_up, int64_t width, T* dgate_up, int64_t begin, int64_t end);
  void (*gelu_tanh)(const T* x, int64_t width, T* y, int64_t begin, int64_t end);
  void (*gelu_tanh_backward)(const T* dy, const T* x, int64_t width, T* dx, int64_t begin, int64_t end);
  void (*cross_entropy)(T* logits, const int64_t* labels, bool gradient, int64_t width, Wide<T>* losses, int64_t begin,
                        int64_t end);
  void (*rotate_heads)(const T* x, int64_t x_stride, const Wide<T>* cos, const Wide<T>* sin, Wide<T> direction, int64_t heads,
                       int64_t half, T* y, int64_t y_stride);
  void (*few_rows_product)(const Wide<T>* x, int64_t rows, const T* weight, int64_t width, const Wide<T>* added, T* y,
                           int64_t y_stride, int64_t begin, int64_t end);
  void (*attend_one)(const T* q, const T* k, const T* v, Wide<T> scale, int64_t keys, int64_t size, Wide<T>* scratch, T* out);
  void (*widen)(const T* x, int64_t count, Wide<T>* wide);
};

using SquaresKernel = float (*)(const Bf16* x, int64_t count);

/// An AdamWStep as the kernel wants it.
struct AdamWNumbers {
  float gradient_factor, one_minus_beta1, beta2, one_minus_beta2, eps, decay, rate, inverse_root_correction2;
};
using AdamWKernel = void (*)(const AdamWNumbers& s, const Bf16* gradient, float* master, float* exp_avg, float* exp_avg_sq,
                             Bf16* parameter, int64_t begin, int64_t end);

#define LORA_KERNELS "ops/row_kernels.h"
#include "ops/kernels_of_all_sets.h"

template <class X, class Y>
const NormKernels<X, Y>& norm_kernels() {
  return LORA_BEST_OF(kNormKernels<X, Y>);
}

template <class T>
const RowKernels<T>& row_kernels() {
  return LORA_BEST_OF(kRowKernels<T>);
}

AdamWKernel adamw_kernel() { return LORA_BEST_OF(kAdamW); }

SquaresKernel squares_kernel() { return LORA_BEST_OF(kSquares); }

/// Calls `body` with a value of the kernel's type for `tensor`.
template <class Body>
void with_type(const Tensor& tensor, Body body) {
  switch (tensor.scalar_type()) {
    case at::kBFloat16:
      return body(Bf16());
    case at::kFloat:
      return body(float());
    case at::kDouble:
      return body(double());
    default:
      fail<ShapeError>("[ops.rows] tensors must be bf16, fp32 or double; found {}", c10::toString(tensor.scalar_type()));
  }
}

/// For kernels with a residual of one type and activations of another.
template <class Body>
void with_types(const Tensor& x, const Tensor& y, Body body) {
  if (x.scalar_type() == at::kFloat && y.scalar_type() == at::kBFloat16) return body(float(), Bf16());
  require<ShapeError>(x.scalar_type() == y.scalar_type(),
                      "[ops.rows] a residual of type {} goes with activations of that type; found {}",
                      c10::toString(x.scalar_type()), c10::toString(y.scalar_type()));
  with_type(x, [&](auto type) { body(type, type); });
}

/// Rows per piece of work: about 16k numbers.
int64_t grain(int64_t width) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(width, 1)); }

/// The token-wise loop of split_rotated and join_rotated; `turn` handles the heads of one kind.
template <class Turn>
void each_token(const Tensor& q, const Tensor& k, const Tensor& cos, Turn turn) {
  const int64_t batch = q.size(0), heads = q.size(1), length = q.size(2), size = q.size(3), groups = k.size(1);
  const int64_t half = size / 2, table_stride = cos.size(0) == 1 ? 0 : length * half;
  at::parallel_for(0, batch * length, grain((heads + 2 * groups) * size), [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t b = token / length, s = token % length;
      turn(token, b, s, b * table_stride + s * half);
    }
  });
}

}  // namespace

bool supports(const at::Device& device, at::ScalarType type) {
  if (device.is_cuda()) return cuda::supports(type);
  return device.is_cpu() && (type == at::kBFloat16 || type == at::kFloat || type == at::kDouble);
}

bool supports(const Tensor& tensor) { return supports(tensor.device(), tensor.scalar_type()); }

bool supports(const Tensor& x, const Tensor& added) {
  if (!added.defined()) return supports(x);
  if (!supports(x) || !supports(added) || x.device() != added.device()) return false;
  const auto narrow = added.scalar_type();
  return narrow == x.scalar_type() || (x.scalar_type() == at::kFloat && narrow != at::kDouble);
}

bool applies(bool asked_for, const Tensor& x, const char* name) {
  if (!asked_for || supports(x)) return asked_for;
  say_once(fmt::format("fast path {}: no kernel for {} on {}; LibTorch's own operations run", name,
                       c10::toString(x.scalar_type()), c10::DeviceTypeName(x.device().type(), /*lower_case=*/true)));
  return false;
}

at::ScalarType wide_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }
Tensor widened(const Tensor& x) { return x.to(wide_type(x.scalar_type())); }

bool are_few_rows(const Tensor& x) { return x.device().is_cpu() && supports(x) && x.size(0) >= 1 && x.size(0) <= kFewRows; }

void few_rows_product(const Tensor& x, const Tensor& weight, Tensor& y, int64_t first, const Tensor& added) {
  with_type(weight, [&](auto type) {
    using T = decltype(type);
    const int64_t width = weight.size(1);
    std::vector<Wide<T>> wide_x(static_cast<size_t>(x.numel()));
    row_kernels<T>().widen(pointer<const T>(x), x.numel(), wide_x.data());
    const auto* extra = added.defined() ? pointer<const Wide<T>>(added) + first : nullptr;
    at::parallel_for(0, weight.size(0), grain(width), [&](int64_t begin, int64_t end) {
      row_kernels<T>().few_rows_product(wide_x.data(), x.size(0), pointer<const T>(weight), width, extra, pointer<T>(y) + first,
                                        y.size(1), begin, end);
    });
  });
}

void attend_to_cache(const Tensor& q, const Tensor& k, const Tensor& v, double scale, Tensor& out) {
  with_type(q, [&](auto type) {
    using T = decltype(type);
    const int64_t heads = q.size(1), queries = q.size(2), groups = k.size(1), keys = k.size(2), size = q.size(3);
    at::parallel_for(0, q.size(0) * heads, grain(2 * queries * keys * size), [&](int64_t begin, int64_t end) {
      std::vector<Wide<T>> scratch(static_cast<size_t>(keys + size));
      for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / heads, head = row % heads, at = b * groups + head / (heads / groups);
        for (int64_t i = 0; i < queries; ++i) {
          row_kernels<T>().attend_one(pointer<const T>(q) + (row * queries + i) * size, pointer<const T>(k) + at * k.stride(1),
                                      pointer<const T>(v) + at * v.stride(1), static_cast<Wide<T>>(scale), keys - queries + 1 + i,
                                      size, scratch.data(), pointer<T>(out) + ((b * queries + i) * heads + head) * size);
        }
      }
    });
  });
}

void add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& weight, double eps, Tensor& sum, Tensor& y,
                  Tensor& inverse_rms) {
  if (x.is_cuda()) return cuda::add_rms_norm(x, delta, weight, eps, sum, y, inverse_rms);
  with_types(x, y, [&](auto x_type, auto y_type) {
    using X = decltype(x_type);
    using Y = decltype(y_type);
    const int64_t width = x.size(1);
    at::parallel_for(0, x.size(0), grain(width), [&](int64_t begin, int64_t end) {
      norm_kernels<X, Y>().add_rms_norm(pointer<const X>(x), pointer<const Y>(delta), pointer<const Wide<X>>(weight),
                                        static_cast<Wide<X>>(eps), width, pointer<X>(sum), pointer<Y>(y),
                                        pointer<Wide<X>>(inverse_rms), begin, end);
    });
  });
}

void rms_norm_backward(const Tensor& dy, const Tensor& dsum, const Tensor& sum, const Tensor& weight, const Tensor& inverse_rms,
                       Tensor& dx) {
  if (dy.is_cuda()) return cuda::rms_norm_backward(dy, dsum, sum, weight, inverse_rms, dx);
  with_types(sum, dy, [&](auto x_type, auto y_type) {
    using X = decltype(x_type);
    using Y = decltype(y_type);
    const int64_t width = sum.size(1);
    at::parallel_for(0, sum.size(0), grain(width), [&](int64_t begin, int64_t end) {
      norm_kernels<X, Y>().rms_norm_backward(pointer<const Y>(dy), pointer<const X>(dsum), pointer<const X>(sum),
                                             pointer<const Wide<X>>(weight), pointer<const Wide<X>>(inverse_rms), width,
                                             pointer<X>(dx), begin, end);
    });
  });
}

void rms_norm_weight_gradient(const Tensor& dy, const Tensor& sum, const Tensor& inverse_rms, Tensor& dweight) {
  with_types(sum, dy, [&](auto x_type, auto y_type) {
    using X = decltype(x_type);
    using Y = decltype(y_type);
    const int64_t rows = sum.size(0), width = sum.size(1);
    at::parallel_for(0, width, std::max<int64_t>(64, grain(rows)), [&](int64_t begin, int64_t end) {
      norm_kernels<X, Y>().rms_norm_weight_gradient(pointer<const Y>(dy), pointer<const X>(sum),
                                                    pointer<const Wide<X>>(inverse_rms), rows, width, pointer<Wide<X>>(dweight),
                                                    begin, end);
    });
  });
}

void add_layer_norm(const Tensor& x, const Tensor& delta, double x_scale, const Tensor& weight, const Tensor& bias, double eps,
                    Tensor& sum, Tensor& y, Tensor& mean, Tensor& inverse_deviation) {
  if (x.is_cuda()) return cuda::add_layer_norm(x, delta, x_scale, weight, bias, eps, sum, y, mean, inverse_deviation);
  with_types(x, y, [&](auto x_type, auto y_type) {
    using X = decltype(x_type);
    using Y = decltype(y_type);
    using W = Wide<X>;
    const int64_t width = x.size(1);
    at::parallel_for(0, x.size(0), grain(width), [&](int64_t begin, int64_t end) {
      norm_kernels<X, Y>().add_layer_norm(pointer<const X>(x), pointer<const Y>(delta), static_cast<W>(x_scale),
                                          pointer<const W>(weight), pointer<const W>(bias), static_cast<W>(eps), width,
                                          pointer<X>(sum), pointer<Y>(y), pointer<W>(mean), pointer<W>(inverse_deviation), begin,
                                          end);
    });
  });
}

void layer_norm_backward(const Tensor& dy, const Tensor& dsum, const Tensor& sum, const Tensor& weight, const Tensor& mean,
                         const Tensor& inverse_deviation, Tensor& dx) {
  if (dy.is_cuda()) return cuda::layer_norm_backward(dy, dsum, sum, weight, mean, inverse_deviation, dx);
  with_types(sum, dy, [&](auto x_type, auto y_type) {
    using X = decltype(x_type);
    using Y = decltype(y_type);
    using W = Wide<X>;
    const int64_t width = sum.size(1);
    at::parallel_for(0, sum.size(0), grain(width), [&](int64_t begin, int64_t end) {
      norm_kernels<X, Y>().layer_norm_backward(pointer<const Y>(dy), pointer<const X>(dsum), pointer<const X>(sum),
                                               pointer<const W>(weight), pointer<const W>(mean),
                                               pointer<const W>(inverse_deviation), width, pointer<X>(dx), begin, end);
    });
  });
}

void gelu_tanh(const Tensor& x, Tensor& y) {
  if (x.is_cuda()) return cuda::gelu_tanh(x, y);
  with_type(x, [&](auto type) {
    using T = decltype(type);
    at::parallel_for(0, x.size(0), grain(x.size(1)), [&](int64_t begin, int64_t end) {
      row_kernels<T>().gelu_tanh(pointer<const T>(x), x.size(1), pointer<T>(y), begin, end);
    });
  });
}

void gelu_tanh_backward(const Tensor& dy, const Tensor& x, Tensor& dx) {
  if (x.is_cuda()) return cuda::gelu_tanh_backward(dy, x, dx);
  with_type(x, [&](auto type) {
    using T = decltype(type);
    at::parallel_for(0, x.size(0), grain(x.size(1)), [&](int64_t begin, int64_t end) {
      row_kernels<T>().gelu_tanh_backward(pointer<const T>(dy), pointer<const T>(x), x.size(1), pointer<T>(dx), begin, end);
    });
  });
}

void swiglu(const Tensor& gate_up, Tensor& h) {
  if (h.is_cuda()) return cuda::swiglu(gate_up, h);
  with_type(h, [&](auto type) {
    using T = decltype(type);
    at::parallel_for(0, h.size(0), grain(h.size(1)), [&](int64_t begin, int64_t end) {
      row_kernels<T>().swiglu(pointer<const T>(gate_up), h.size(1), pointer<T>(h), begin, end);
    });
  });
}

void swiglu_backward(const Tensor& dh, const Tensor& gate_up, Tensor& dgate_up) {
  if (dh.is_cuda()) return cuda::swiglu_backward(dh, gate_up, dgate_up);
  with_type(dh, [&](auto type) {
    using T = decltype(type);
    at::parallel_for(0, dh.size(0), grain(dh.size(1)), [&](int64_t begin, int64_t end) {
      row_kernels<T>().swiglu_backward(pointer<const T>(dh), pointer<const T>(gate_up), dh.size(1), pointer<T>(dgate_up), begin,
                                       end);
    });
  });
}

void cross_entropy(Tensor& logits, const Tensor& labels, bool gradient, Tensor& losses) {
  if (logits.is_cuda()) return cuda::cross_entropy(logits, labels, gradient, losses);
  with_type(logits, [&](auto type) {
    using T = decltype(type);
    at::parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
      row_kernels<T>().cross_entropy(pointer<T>(logits), pointer<const int64_t>(labels), gradient, logits.size(1),
                                     pointer<Wide<T>>(losses), begin, end);
    });
  });
}

void split_rotated(const Tensor& qkv, const Tensor& cos, const Tensor& sin, Tensor& q, Tensor& k, Tensor& v) {
  if (qkv.is_cuda()) return cuda::split_rotated(qkv, cos, sin, q, k, v);
  with_type(qkv, [&](auto type) {
    using T = decltype(type);
    const auto& kernels = row_kernels<T>();
    const int64_t heads = q.size(1), length = q.size(2), size = q.size(3), groups = k.size(1);
    each_token(q, k, cos, [&](int64_t token, int64_t b, int64_t s, int64_t angle) {
      const T* row = pointer<const T>(qkv) + token * (heads + 2 * groups) * size;
      const auto *cosine = pointer<const Wide<T>>(cos) + angle, *sine = pointer<const Wide<T>>(sin) + angle;
      const int64_t stride = length * size, to_q = (b * heads * length + s) * size, to_k = (b * groups * length + s) * size;
      kernels.rotate_heads(row, size, cosine, sine, Wide<T>(1), heads, size / 2, pointer<T>(q) + to_q, stride);
      kernels.rotate_heads(row + heads * size, size, cosine, sine, Wide<T>(1), groups, size / 2, pointer<T>(k) + to_k, stride);
      for (int64_t g = 0; g < groups; ++g) {
        std::memcpy(pointer<T>(v) + to_k + g * stride, row + (heads + groups + g) * size, static_cast<size_t>(size) * sizeof(T));
      }
    });
  });
}

void join_rotated(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& cos, const Tensor& sin, Tensor& dqkv) {
  if (dqkv.is_cuda()) return cuda::join_rotated(dq, dk, dv, cos, sin, dqkv);
  with_type(dqkv, [&](auto type) {
    using T = decltype(type);
    const auto& kernels = row_kernels<T>();
    const int64_t heads = dq.size(1), length = dq.size(2), size = dq.size(3), groups = dk.size(1);
    each_token(dq, dk, cos, [&](int64_t token, int64_t b, int64_t s, int64_t angle) {
      T* row = pointer<T>(dqkv) + token * (heads + 2 * groups) * size;
      const auto *cosine = pointer<const Wide<T>>(cos) + angle, *sine = pointer<const Wide<T>>(sin) + angle;
      const int64_t stride = length * size, of_q = (b * heads * length + s) * size, of_k = (b * groups * length + s) * size;
      kernels.rotate_heads(pointer<const T>(dq) + of_q, stride, cosine, sine, Wide<T>(-1), heads, size / 2, row, size);
      kernels.rotate_heads(pointer<const T>(dk) + of_k, stride, cosine, sine, Wide<T>(-1), groups, size / 2, row + heads * size,
                           size);
      for (int64_t g = 0; g < groups; ++g) {
        std::memcpy(row + (heads + groups + g) * size, pointer<const T>(dv) + of_k + g * stride,
                    static_cast<size_t>(size) * sizeof(T));
      }
    });
  });
}

double sum_of_squares(const Tensor& x) {
  constexpr int64_t kBlock = 4096;
  const int64_t count = x.numel(), blocks = (count + kBlock - 1) / kBlock;
  std::vector<double> sums(static_cast<size_t>(blocks));
  at::parallel_for(0, blocks, 16, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlock;
      sums[static_cast<size_t>(block)] = squares_kernel()(pointer<const Bf16>(x) + first, std::min(kBlock, count - first));
    }
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

void adamw(const AdamWStep& step, const Tensor& gradient, Tensor& master, Tensor& exp_avg, Tensor& exp_avg_sq,
           Tensor& parameter) {
  const AdamWNumbers numbers{.gradient_factor = static_cast<float>(step.gradient_factor),
                             .one_minus_beta1 = static_cast<float>(1 - step.beta1),
                             .beta2 = static_cast<float>(step.beta2),
                             .one_minus_beta2 = static_cast<float>(1 - step.beta2),
                             .eps = static_cast<float>(step.eps),
                             .decay = static_cast<float>(1 - step.learning_rate * step.weight_decay),
                             .rate = static_cast<float>(step.learning_rate / step.correction1),
                             .inverse_root_correction2 = static_cast<float>(1 / std::sqrt(step.correction2))};
  at::parallel_for(0, parameter.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
    adamw_kernel()(numbers, pointer<const Bf16>(gradient), pointer<float>(master), pointer<float>(exp_avg),
                   pointer<float>(exp_avg_sq), pointer<Bf16>(parameter), begin, end);
  });
}

bool has_joint_adamw(const Tensor& parameter, const Tensor& gradient) {
  const auto is_half = [](at::ScalarType type) { return type == at::kHalf || type == at::kBFloat16; };
  const auto of_parameter = parameter.scalar_type(), of_gradient = gradient.scalar_type();
  return parameter.is_cuda() && cuda::supports(of_parameter) && is_half(of_parameter) && parameter.is_contiguous() &&
         gradient.is_contiguous() && (of_gradient == of_parameter || of_gradient == at::kFloat);
}

void joint_adamw(const AdamWStep& step, bool corrects_bias, const std::vector<AdamWTensors>& tensors) {
  cuda::joint_adamw(step, corrects_bias, tensors);
}

}  // namespace lora::ops::rows
