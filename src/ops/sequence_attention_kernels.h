// The kernels of sequence_attention.cpp, which includes this file once per instruction set, inside
// a namespace and under the compiler options of that set: hence no include guard. T is the tensors'
// type, U that of the operands of products.
#include "ops/lane_numbers.h"
#include "ops/lane_transpose.h"

/// Rows of one head lie far apart: each is asked for while others are worked on.
template <class T>
LORA_INLINE void prefetch_row(const T* x, int64_t size) {
  const auto* bytes = reinterpret_cast<const char*>(x);
  for (int64_t at = 0; at < size * static_cast<int64_t>(sizeof(T)); at += 64) __builtin_prefetch(bytes + at);
}
template <class T>
LORA_INLINE void prefetch_row_to_write(T* x, int64_t size) {
  auto* bytes = reinterpret_cast<char*>(x);
  for (int64_t at = 0; at < size * static_cast<int64_t>(sizeof(T)); at += 64) __builtin_prefetch(bytes + at, 1);
}
constexpr int64_t kRowsAhead = 16;

/// Row `row` of one head, rotated by its row of the tables (null: as it is).
template <class From, class To, class W>
LORA_INLINE void turn_row(const From* from, const W* cos, const W* sin, W direction, int64_t row, int64_t size, To* to) {
  const int64_t half = size / 2;
  if (cos != nullptr) return rotate_row(from, cos + row * half, sin + row * half, direction, half, to);
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) store(to[i], load(from[i]));
}

/// Rows of one head as operands, rotated; zero from `count` to `padded`.
template <class T, class U>
void gather(const T* x, int64_t stride, int64_t count, int64_t padded, const Wide<T>* cos, const Wide<T>* sin, int64_t size,
            U* rows) {
  for (int64_t row = 0; row < count; ++row) {
    const T* from = x + row * stride;
    if (row + kRowsAhead < count) prefetch_row(from + kRowsAhead * stride, size);
    turn_row(from, cos, sin, Wide<T>(1), row, size, rows + row * size);
  }
  std::memset(rows + count * size, 0, static_cast<size_t>((padded - count) * size) * sizeof(U));
}

/// The way back for gradients: rotated by the opposite angles.
template <class T>
void scatter(const Wide<T>* rows, int64_t count, const Wide<T>* cos, const Wide<T>* sin, int64_t size, T* x, int64_t stride) {
  for (int64_t row = 0; row < count; ++row) {
    T* to = x + row * stride;
    if (row + kRowsAhead < count) prefetch_row_to_write(to + kRowsAhead * stride, size);
    turn_row(rows + row * size, cos, sin, Wide<T>(-1), row, size, to);
  }
}

/// Numbers of neighbouring rows side by side, as bf16 products want their second operand: (rows,
/// columns) to (rows / 2, columns, 2).
inline void pair_rows(const Bf16* x, int64_t rows, int64_t columns, Bf16* y) {
  for (int64_t row = 0; row < rows; row += 2) {
    const Bf16 *even = x + row * columns, *odd = even + columns;
    auto* to = reinterpret_cast<uint32_t*>(y + row * columns);
#pragma omp simd
    for (int64_t i = 0; i < columns; ++i) to[i] = even[i].bits | static_cast<uint32_t>(odd[i].bits) << 16;
  }
}

/// One block of scores, (kQueries, keys), to probabilities relative to the largest score so far,
/// here and in `p`. Query `row` sees the first `seen` + row keys, at least `context` of them. `largest`
/// and `sum` go on from the blocks before; `shrink` is what those are to be multiplied by.
template <class W, class U>
void softmax_block(W* scores, int64_t queries, int64_t keys, int64_t seen, int64_t context, W scale, bool first, W* largest,
                   W* sum, W* shrink, U* p) {
  for (int64_t row = 0; row < queries; ++row) {
    const int64_t reach = seen + row > context ? seen + row : context;
    const auto visible = static_cast<int32_t>(reach < keys ? reach : keys), all = static_cast<int32_t>(keys);
    W* s = scores + row * keys;
    U* to = p + row * keys;
    shrink[row] = 1;
    if (visible <= 0) {
      std::memset(to, 0, static_cast<size_t>(keys) * sizeof(U));
      continue;
    }
    W top = largest_of(s, visible) * scale;
    if (!first) {
      top = top > largest[row] ? top : largest[row];
      shrink[row] = exponential(largest[row] - top);
    }
#pragma omp simd
    for (int32_t i = 0; i < all; ++i) {
      const W value = exponential(s[i] * scale - top);
      s[i] = i < visible ? value : W(0);
      store(to[i], s[i]);
    }
    const W total = sum_over<W>(all, [&](auto at) { return at(static_cast<const W*>(s)); });
    sum[row] = (first ? W(0) : sum[row] * shrink[row]) + total;
    largest[row] = top;
  }
}

/// Rows of `sums` times their factor.
template <class W>
void scale_rows(const W* factors, int64_t rows, int64_t size, W* sums) {
  for (int64_t row = 0; row < rows; ++row) {
    const W factor = factors[row];
    if (factor == W(1)) continue;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) sums[row * size + i] *= factor;
  }
}

/// The output's rows, sums / sum, and log_sum.
template <class T>
void finish_rows(const Wide<T>* sums, const Wide<T>* largest, const Wide<T>* sum, int64_t count, int64_t size, T* out,
                 int64_t stride, Wide<T>* log_sum) {
  for (int64_t row = 0; row < count; ++row) {
    const Wide<T> factor = Wide<T>(1) / sum[row];
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) store(out[row * stride + i], sums[row * size + i] * factor);
    log_sum[row] = largest[row] + std::log(sum[row]);
  }
}

/// Each row's sum of out * dout.
template <class T>
void row_dots(const T* out, const T* dout, int64_t stride, int64_t count, int64_t size, Wide<T>* dots) {
  for (int64_t row = 0; row < count; ++row) {
    const T *o = out + row * stride, *d = dout + row * stride;
    if (row + kRowsAhead < count) prefetch_row(o + kRowsAhead * stride, size), prefetch_row(d + kRowsAhead * stride, size);
    dots[row] = sum_over<Wide<T>>(size, [&](auto at) { return at(o) * at(d); });
  }
}

/// From scores = k q^T and dp = v dout^T, (keys, kQueries), of which key `row` is seen by the
/// queries from row - `ahead` on, the first `context` by all: p = exp(scale scores - log_sum) and
/// ds = scale p (dp - dots), zero where a query may not look.
template <class W, class U>
void softmax_backward_block(const W* scores, const W* dp, const W* log_sum, const W* dots, W scale, int64_t keys, int64_t ahead,
                            int64_t context, U* p, U* ds) {
  for (int64_t row = 0; row < keys; ++row) {
    const auto hidden = static_cast<int32_t>(row < context ? 0 : row - ahead);
    const W *s = scores + row * kQueries, *d = dp + row * kQueries;
    U *to_p = p + row * kQueries, *to_ds = ds + row * kQueries;
#pragma omp simd
    for (int32_t i = 0; i < static_cast<int32_t>(kQueries); ++i) {
      const W value = exponential(s[i] * scale - log_sum[i]);
      const W probability = i < hidden ? W(0) : value;
      store(to_p[i], probability);
      store(to_ds[i], probability * (d[i] - dots[i]) * scale);
    }
  }
}

template <class T, class U>
constexpr AttentionKernels<T, U> kAttentionKernels = {gather<T, U>,
                                                      scatter<T>,
                                                      transpose<U>,
                                                      transpose<uint32_t>,
                                                      transpose<Wide<T>>,
                                                      pair_rows,
                                                      softmax_block<Wide<T>, U>,
                                                      scale_rows<Wide<T>>,
                                                      finish_rows<T>,
                                                      row_dots<T>,
                                                      softmax_backward_block<Wide<T>, U>};
