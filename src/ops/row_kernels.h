// The kernels of rows.cpp, which includes this file once per instruction set, inside a namespace and under the compiler
// options of that set: hence no include guard. `omp simd` on a reduction allows it to be summed in
// lanes; on another loop it promises that rows do not overlap.

#include "ops/lane_numbers.h"

/// delta may be null: then sum is x.
template <class X, class Y>
LORA_INLINE void add_rms_norm_row(const X* x, const Y* delta, const Wide<X>* weight, Wide<X> eps, int64_t width, X* sum, Y* y,
                                  Wide<X>* inverse_rms) {
  using W = Wide<X>;
  if (delta != nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(sum[i], load(x[i]) + load(delta[i]));
  }
  const W squares = sum_over<W>(width, [&](auto at) { return at(sum) * at(sum); });
  const W factor = W(1) / std::sqrt(squares / static_cast<W>(width) + eps);
  *inverse_rms = factor;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) store(y[i], load(sum[i]) * factor * weight[i]);
}

template <class X, class Y>
LORA_INLINE void rms_norm_backward_row(const Y* dy, const X* dsum, const X* sum, const Wide<X>* weight, Wide<X> inverse_rms,
                                       int64_t width, X* dx) {
  using W = Wide<X>;
  const W dot = sum_over<W>(width, [&](auto at) { return at(dy) * at(weight) * at(sum); });
  const W projection = dot * inverse_rms * inverse_rms * inverse_rms / static_cast<W>(width);
  if (dsum != nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      store(dx[i], load(dsum[i]) + load(dy[i]) * weight[i] * inverse_rms - load(sum[i]) * projection);
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(dx[i], load(dy[i]) * weight[i] * inverse_rms - load(sum[i]) * projection);
  }
}

/// delta may be null: then sum is x.
template <class X, class Y>
LORA_INLINE void add_layer_norm_row(const X* x, const Y* delta, Wide<X> x_scale, const Wide<X>* weight, const Wide<X>* bias,
                                    Wide<X> eps, int64_t width, X* sum, Y* y, Wide<X>* mean, Wide<X>* inverse_deviation) {
  using W = Wide<X>;
  if (delta != nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(sum[i], load(x[i]) * x_scale + load(delta[i]));
  }
  const W center = sum_over<W>(width, [&](auto at) { return at(sum); }) / static_cast<W>(width);
  const W squares = sum_over<W>(width, [&](auto at) { return (at(sum) - center) * (at(sum) - center); });
  const W factor = W(1) / std::sqrt(squares / static_cast<W>(width) + eps);
  *mean = center;
  *inverse_deviation = factor;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) store(y[i], (load(sum[i]) - center) * factor * weight[i] + bias[i]);
}

template <class X, class Y>
LORA_INLINE void layer_norm_backward_row(const Y* dy, const X* dsum, const X* sum, const Wide<X>* weight, Wide<X> mean,
                                         Wide<X> inverse_deviation, int64_t width, X* dx) {
  using W = Wide<X>;
  const W total = sum_over<W>(width, [&](auto at) { return at(dy) * at(weight); });
  const W dot = sum_over<W>(width, [&](auto at) { return at(dy) * at(weight) * (at(sum) - mean); });
  const W shift = total / static_cast<W>(width);
  const W projection = dot * inverse_deviation * inverse_deviation / static_cast<W>(width);
  if (dsum != nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const W inner = load(dy[i]) * weight[i] - shift - (load(sum[i]) - mean) * projection;
      store(dx[i], load(dsum[i]) + inner * inverse_deviation);
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      store(dx[i], (load(dy[i]) * weight[i] - shift - (load(sum[i]) - mean) * projection) * inverse_deviation);
    }
  }
}

/// 2 sqrt(2 / pi) (x + 0.044715 x^3), whose sigmoid is GELU-tanh's factor, and its derivative. Beyond 30 the sigmoid is 0
/// or 1, and the cube stays finite.
template <class W>
LORA_INLINE W gelu_clipped(W x) {
  const W above = x < W(-30) ? W(-30) : x;
  return above > W(30) ? W(30) : above;
}
template <class W>
LORA_INLINE W gelu_inner(W x) {
  return W(1.5957691216057308) * (x + W(0.044715) * x * x * x);
}
template <class W>
LORA_INLINE W gelu_inner_slope(W x) {
  return W(1.5957691216057308) * (W(1) + W(0.134145) * x * x);
}

template <class T>
LORA_INLINE void gelu_tanh_row(const T* x, int64_t width, T* y) {
  using W = Wide<T>;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const W value = load(x[i]);
    store(y[i], value / (W(1) + exponential(-gelu_inner(gelu_clipped(value)))));
  }
}

template <class T>
LORA_INLINE void gelu_tanh_backward_row(const T* dy, const T* x, int64_t width, T* dx) {
  using W = Wide<T>;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const W clipped = gelu_clipped(load(x[i]));
    const W sigmoid = W(1) / (W(1) + exponential(-gelu_inner(clipped)));
    store(dx[i], load(dy[i]) * sigmoid * (W(1) + clipped * (W(1) - sigmoid) * gelu_inner_slope(clipped)));
  }
}

template <class T>
LORA_INLINE void swiglu_row(const T* gate, const T* up, int64_t width, T* h) {
  using W = Wide<T>;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const W g = load(gate[i]);
    store(h[i], g / (W(1) + exponential(-g)) * load(up[i]));
  }
}

template <class T>
LORA_INLINE void swiglu_backward_row(const T* dh, const T* gate, const T* up, int64_t width, T* dgate, T* dup) {
  using W = Wide<T>;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const W g = load(gate[i]), d = load(dh[i]);
    const W sigmoid = W(1) / (W(1) + exponential(-g));
    store(dup[i], d * g * sigmoid);
    store(dgate[i], d * load(up[i]) * sigmoid * (W(1) + g * (W(1) - sigmoid)));
  }
}

template <class T>
LORA_INLINE void cross_entropy_row(T* logits, int64_t label, bool gradient, int64_t width, Wide<T>* loss) {
  using W = Wide<T>;
  if (label < 0) {
    *loss = 0;
    if (gradient) std::memset(logits, 0, static_cast<size_t>(width) * sizeof(T));
    return;
  }
  W largest = -std::numeric_limits<W>::infinity();
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < width; ++i) largest = load(logits[i]) > largest ? load(logits[i]) : largest;
  W sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) sum += exponential(load(logits[i]) - largest);
  const W of_label = load(logits[label]) - largest;
  *loss = std::log(sum) - of_label;
  if (!gradient) return;
  const W inverse = W(1) / sum;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) store(logits[i], exponential(load(logits[i]) - largest) * inverse);
  store(logits[label], exponential(of_label) * inverse - W(1));
}

/// Outputs of `Rows` rows, for as many rows of the weight. Which numbers are added to which, in which order, depends on
/// neither count: a row has the same result whatever rows stand beside it. `sums` is (Outputs, Rows).
template <int Rows, int Outputs, class T>
LORA_INLINE void few_rows_outputs(const Wide<T>* x, const T* const* weight_rows, int64_t width, Wide<T>* sums) {
  using W = Wide<T>;
  constexpr int64_t kStep = kLanes<T>, kAhead = 2048 / static_cast<int64_t>(sizeof(T));
  Lanes<W> lanes[Outputs][Rows] = {};
  int64_t i = 0;
  for (; i + kStep <= width; i += kStep) {
    Lanes<W> x_lanes[Rows];
#pragma GCC unroll 4
    for (int row = 0; row < Rows; ++row) x_lanes[row] = load_lanes(x + row * width + i);
#pragma GCC unroll 8
    for (int output = 0; output < Outputs; ++output) {
      __builtin_prefetch(weight_rows[output] + i + kAhead);
      const Lanes<W> weights = load_lanes(weight_rows[output] + i);
#pragma GCC unroll 4
      for (int row = 0; row < Rows; ++row) lanes[output][row] += weights * x_lanes[row];
    }
  }
  for (int output = 0; output < Outputs; ++output) {
    for (int row = 0; row < Rows; ++row) {
      W sum = sum_of_lanes<W>(lanes[output][row]);
      for (int64_t rest = i; rest < width; ++rest) sum += load(weight_rows[output][rest]) * x[row * width + rest];
      sums[output * Rows + row] = sum;
    }
  }
}

/// The outputs `first`, `first + stride`, ... of `Rows` rows.
template <int Rows, int Outputs, class T>
LORA_INLINE void outputs_of_rows(const Wide<T>* x, const T* weight, int64_t width, const Wide<T>* added, T* y, int64_t y_stride,
                                 int64_t first, int64_t stride) {
  const T* weight_rows[Outputs];
  for (int output = 0; output < Outputs; ++output) weight_rows[output] = weight + (first + output * stride) * width;
  Wide<T> sums[Outputs * Rows];
  few_rows_outputs<Rows, Outputs>(x, weight_rows, width, sums);
  for (int output = 0; output < Outputs; ++output) {
    for (int row = 0; row < Rows; ++row) {
      const int64_t at = row * y_stride + first + output * stride;
      store(y[at], added == nullptr ? sums[output * Rows + row] : sums[output * Rows + row] + added[at]);
    }
  }
}

/// The weight is read in several places at a time: memory brings what one reader follows at two thirds of its speed.
template <int Rows, class T>
void products_of_rows(const Wide<T>* x, const T* weight, int64_t width, const Wide<T>* added, T* y, int64_t y_stride,
                      int64_t begin, int64_t end) {
  constexpr int kReaders = Rows == 1 ? 8 : 4;
  const int64_t stride = (end - begin) / kReaders, together = begin + stride * kReaders;
  for (int64_t output = begin; output < begin + stride; ++output) {
    outputs_of_rows<Rows, kReaders>(x, weight, width, added, y, y_stride, output, stride);
  }
  for (int64_t output = together; output < end; ++output) {
    outputs_of_rows<Rows, 1>(x, weight, width, added, y, y_stride, output, 0);
  }
}

/// Outputs begin .. end of x (M, I) W^T, M at most 4: the weight's rows are read once, x is small and in the wide type.
template <class T>
void few_rows_products(const Wide<T>* x, int64_t rows, const T* weight, int64_t width, const Wide<T>* added, T* y,
                       int64_t y_stride, int64_t begin, int64_t end) {
  switch (rows) {
    case 1:
      return products_of_rows<1>(x, weight, width, added, y, y_stride, begin, end);
    case 2:
      return products_of_rows<2>(x, weight, width, added, y, y_stride, begin, end);
    case 3:
      return products_of_rows<3>(x, weight, width, added, y, y_stride, begin, end);
    default:
      return products_of_rows<4>(x, weight, width, added, y, y_stride, begin, end);
  }
}

template <class T>
void widen(const T* x, int64_t count, Wide<T>* wide) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) wide[i] = load(x[i]);
}

/// Softmax attention of one query over `keys` keys; scratch holds keys + size numbers.
template <class T>
void attend_one(const T* q, const T* k, const T* v, Wide<T> scale, int64_t keys, int64_t size, Wide<T>* scratch, T* out) {
  using W = Wide<T>;
  W *scores = scratch, *sum = scratch + keys;
  W largest = -std::numeric_limits<W>::infinity();
  for (int64_t key = 0; key < keys; ++key) {
    const T* k_row = k + key * size;
    scores[key] = sum_over<W>(size, [&](auto at) { return at(q) * at(k_row); }) * scale;
    largest = scores[key] > largest ? scores[key] : largest;
  }
  W total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t key = 0; key < keys; ++key) total += scores[key] = exponential(scores[key] - largest);
  for (int64_t i = 0; i < size; ++i) sum[i] = 0;
  for (int64_t key = 0; key < keys; ++key) {
    const W weight = scores[key];
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) sum[i] += weight * load(v[key * size + i]);
  }
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) store(out[i], sum[i] / total);
}

template <class T>
float squares(const T* x, int64_t count) {
  return sum_over<float>(count, [&](auto at) { return at(x) * at(x); });
}

/// Elements begin .. end.
template <class T>
void adamw_elements(const AdamWNumbers& s, const T* gradient, float* master, float* exp_avg, float* exp_avg_sq, T* parameter,
                    int64_t begin, int64_t end) {
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    const float g = load(gradient[i]) * s.gradient_factor;
    const float m = exp_avg[i] + (g - exp_avg[i]) * s.one_minus_beta1;
    const float v = exp_avg_sq[i] * s.beta2 + g * g * s.one_minus_beta2;
    const float p = master[i] * s.decay - s.rate * m / (std::sqrt(v) * s.inverse_root_correction2 + s.eps);
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    master[i] = p;
    store(parameter[i], p);
  }
}

// Rows begin .. end of each kernel.

template <class X, class Y>
void add_rms_norm_rows(const X* x, const Y* delta, const Wide<X>* weight, Wide<X> eps, int64_t width, X* sum, Y* y,
                       Wide<X>* inverse_rms, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * width;
    add_rms_norm_row(x + at, delta == nullptr ? nullptr : delta + at, weight, eps, width, sum + at, y + at, inverse_rms + row);
  }
}

template <class X, class Y>
void rms_norm_backward_rows(const Y* dy, const X* dsum, const X* sum, const Wide<X>* weight, const Wide<X>* inverse_rms,
                            int64_t width, X* dx, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * width;
    rms_norm_backward_row(dy + at, dsum == nullptr ? nullptr : dsum + at, sum + at, weight, inverse_rms[row], width, dx + at);
  }
}

/// Columns begin .. end of the weight's gradient, dy * sum * inverse_rms over all rows.
template <class X, class Y>
void rms_norm_weight_gradient(const Y* dy, const X* sum, const Wide<X>* inverse_rms, int64_t rows, int64_t width,
                              Wide<X>* dweight, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) dweight[i] = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const Y* dy_row = dy + row * width;
    const X* sum_row = sum + row * width;
    const Wide<X> factor = inverse_rms[row];
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) dweight[i] += load(dy_row[i]) * load(sum_row[i]) * factor;
  }
}

template <class X, class Y>
void add_layer_norm_rows(const X* x, const Y* delta, Wide<X> x_scale, const Wide<X>* weight, const Wide<X>* bias, Wide<X> eps,
                         int64_t width, X* sum, Y* y, Wide<X>* mean, Wide<X>* inverse_deviation, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * width;
    add_layer_norm_row(x + at, delta == nullptr ? nullptr : delta + at, x_scale, weight, bias, eps, width, sum + at, y + at,
                       mean + row, inverse_deviation + row);
  }
}

template <class X, class Y>
void layer_norm_backward_rows(const Y* dy, const X* dsum, const X* sum, const Wide<X>* weight, const Wide<X>* mean,
                              const Wide<X>* inverse_deviation, int64_t width, X* dx, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * width;
    layer_norm_backward_row(dy + at, dsum == nullptr ? nullptr : dsum + at, sum + at, weight, mean[row], inverse_deviation[row],
                            width, dx + at);
  }
}

template <class T>
void gelu_tanh_rows(const T* x, int64_t width, T* y, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) gelu_tanh_row(x + row * width, width, y + row * width);
}

template <class T>
void gelu_tanh_backward_rows(const T* dy, const T* x, int64_t width, T* dx, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    gelu_tanh_backward_row(dy + row * width, x + row * width, width, dx + row * width);
  }
}

template <class T>
void swiglu_rows(const T* gate_up, int64_t width, T* h, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = gate_up + row * 2 * width;
    swiglu_row(gate, gate + width, width, h + row * width);
  }
}

template <class T>
void swiglu_backward_rows(const T* dh, const T* gate_up, int64_t width, T* dgate_up, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * 2 * width;
    swiglu_backward_row(dh + row * width, gate_up + at, gate_up + at + width, width, dgate_up + at, dgate_up + at + width);
  }
}

template <class T>
void cross_entropy_rows(T* logits, const int64_t* labels, bool gradient, int64_t width, Wide<T>* losses, int64_t begin,
                        int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    cross_entropy_row(logits + row * width, labels[row], gradient, width, losses + row);
  }
}

template <class T>
void rotate_heads(const T* x, int64_t x_stride, const Wide<T>* cos, const Wide<T>* sin, Wide<T> direction, int64_t heads,
                  int64_t half, T* y, int64_t y_stride) {
  for (int64_t head = 0; head < heads; ++head) {
    rotate_row(x + head * x_stride, cos, sin, direction, half, y + head * y_stride);
  }
}

template <class X, class Y>
constexpr NormKernels<X, Y> kNormKernels = {add_rms_norm_rows<X, Y>, rms_norm_backward_rows<X, Y>, add_layer_norm_rows<X, Y>,
                                            layer_norm_backward_rows<X, Y>, rms_norm_weight_gradient<X, Y>};

template <class T>
constexpr RowKernels<T> kRowKernels = {swiglu_rows<T>,
                                       swiglu_backward_rows<T>,
                                       gelu_tanh_rows<T>,
                                       gelu_tanh_backward_rows<T>,
                                       cross_entropy_rows<T>,
                                       rotate_heads<T>,
                                       few_rows_products<T>,
                                       attend_one<T>,
                                       widen<T>};

constexpr auto kAdamW = adamw_elements<Bf16>;
constexpr auto kSquares = squares<Bf16>;
