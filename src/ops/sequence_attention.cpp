#include "ops/sequence_attention.h"

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <type_traits>

#include "core/check.h"
#include "ops/lanes.h"

namespace lora::ops {
namespace {

/// Queries of one block, and keys of one: scores of a block stay in the second-level cache.
/// Sequences are filled up to whole blocks of queries, since every new shape costs the products a
/// plan of their own.
constexpr int64_t kQueries = 64, kKeys = 512;

template <class T, class U>
struct AttentionKernels {
  void (*gather)(const T* x, int64_t stride, int64_t count, int64_t padded, const Wide<T>* cos, const Wide<T>* sin, int64_t size,
                 U* rows);
  void (*scatter)(const Wide<T>* rows, int64_t count, const Wide<T>* cos, const Wide<T>* sin, int64_t size, T* x, int64_t stride);
  void (*transpose)(const U* x, int64_t rows, int64_t columns, int64_t stride, U* y);
  void (*transpose_pairs)(const uint32_t* x, int64_t rows, int64_t columns, int64_t stride, uint32_t* y);
  void (*transpose_wide)(const Wide<T>* x, int64_t rows, int64_t columns, int64_t stride, Wide<T>* y);
  void (*pair_rows)(const Bf16* x, int64_t rows, int64_t columns, Bf16* y);
  void (*softmax_block)(Wide<T>* scores, int64_t queries, int64_t keys, int64_t seen, int64_t context, Wide<T> scale, bool first,
                        Wide<T>* largest, Wide<T>* sum, Wide<T>* shrink, U* p);
  void (*scale_rows)(const Wide<T>* factors, int64_t rows, int64_t size, Wide<T>* sums);
  void (*finish_rows)(const Wide<T>* sums, const Wide<T>* largest, const Wide<T>* sum, int64_t count, int64_t size, T* out,
                      int64_t stride, Wide<T>* log_sum);
  void (*row_dots)(const T* out, const T* dout, int64_t stride, int64_t count, int64_t size, Wide<T>* dots);
  void (*softmax_backward_block)(const Wide<T>* scores, const Wide<T>* dp, const Wide<T>* log_sum, const Wide<T>* dots,
                                 Wide<T> scale, int64_t keys, int64_t ahead, int64_t context, U* p, U* ds);
};

#define LORA_KERNELS "ops/sequence_attention_kernels.h"
#include "ops/kernels_of_all_sets.h"

template <class T, class U>
const AttentionKernels<T, U>& kernels() {
  return LORA_BEST_OF(kAttentionKernels<T, U>);
}

// ---- Products: C (M, N) = A (M, K) B (K, N), or added to C; all row-major, B in pairs of rows for bf16 ----

struct Shape {
  int64_t m, n, k;
};

void multiply(const Shape& s, const Bf16* a, int64_t a_stride, const Bf16* b, int64_t b_stride, bool add, float* c,
              int64_t c_stride) {
  at::native::cpublas::brgemm(s.m, s.n, s.k, a_stride, b_stride, c_stride, add, reinterpret_cast<const at::BFloat16*>(a),
                              reinterpret_cast<const at::BFloat16*>(b), c, /*is_vnni=*/true);
}

/// Without the dispatcher, on memory as it lies.
template <class W>
void multiply(const Shape& s, const W* a, int64_t a_stride, const W* b, int64_t b_stride, bool add, W* c, int64_t c_stride) {
  const auto matrix = [](const W* data, int64_t rows, int64_t columns, int64_t stride) {
    return at::from_blob(const_cast<W*>(data), {rows, columns}, {stride, 1}, c10::CppTypeToScalarType<W>::value);
  };
  Tensor product = matrix(c, s.m, s.n, c_stride);
  at::cpu::addmm_out(product, product, matrix(a, s.m, s.k, a_stride), matrix(b, s.k, s.n, b_stride),
                     /*beta=*/add ? 1 : 0);
}

/// Gives back what products of bf16 hold of the processor.
template <class U>
struct Release {
  ~Release() {
    if constexpr (std::is_same_v<U, Bf16>) at::native::cpublas::brgemm_release(/*is_vnni=*/true);
  }
};

// ---- Working memory ----

int64_t whole_blocks(int64_t length) { return (length + kQueries - 1) / kQueries * kQueries; }

/// Where the keys end that queries begin .. begin + kQueries see: as many blocks of them as serve them all.
int64_t end_of_keys(const Sequence& sequence, int64_t begin) {
  return std::max(begin + kQueries, whole_blocks(sequence.context));
}

/// Memory for some numbers, not initialised.
template <class E>
class Numbers {
 public:
  explicit Numbers(int64_t count) : data_(std::make_unique_for_overwrite<E[]>(static_cast<size_t>(count))) {}
  E* get() const { return data_.get(); }

 private:
  std::unique_ptr<E[]> data_;
};

/// Where one head of one sequence is read from or written to.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  const Wide<T>*cos, *sin;  ///< null: not rotated
  int64_t half;

  Rows from(int64_t row) const {
    return {data + row * stride, stride, cos == nullptr ? nullptr : cos + row * half, sin == nullptr ? nullptr : sin + row * half,
            half};
  }
};

/// Operands of products made of gathered rows. The second one of a bf16 product stands in pairs.
template <class T, class U>
struct Operands {
  static constexpr int64_t kPair = std::is_same_v<U, Bf16> ? 2 : 1;
  int64_t size;

  void gather(const Rows<T>& rows, int64_t count, int64_t padded, U* to) const {
    kernels<T, U>().gather(rows.data, rows.stride, count, padded, rows.cos, rows.sin, size, to);
  }
  /// (rows, K) as the second operand (rows, K).
  const U* second(const U* rows, int64_t count, U* room) const {
    if constexpr (kPair == 1) return rows;
    if constexpr (kPair == 2) kernels<T, U>().pair_rows(rows, count, size, room);
    return room;
  }
  /// (rows, K) as the second operand (K, rows).
  void transposed_second(const U* rows, int64_t count, U* to) const {
    if constexpr (kPair == 1) {
      kernels<T, U>().transpose(rows, count, size, count, to);
    } else {
      kernels<T, U>().transpose_pairs(reinterpret_cast<const uint32_t*>(rows), count, size / 2, count,
                                      reinterpret_cast<uint32_t*>(to));
    }
  }
};

/// The tensors of an attention as the loops see them.
template <class T>
struct View {
  explicit View(const JoinedHeads& joined, const Tensor& rows_NW)
      : heads(joined.heads),
        groups(joined.groups),
        size(joined.head_size()),
        width(rows_NW.size(1)),
        data(pointer<T>(rows_NW)),
        cos(pointer<const Wide<T>>(joined.cos_TK)),
        sin(pointer<const Wide<T>>(joined.sin_TK)) {}

  Rows<T> query(const Sequence& sequence, int64_t head) const { return rotated(sequence, head); }
  Rows<T> key(const Sequence& sequence, int64_t group) const { return rotated(sequence, heads + group); }
  Rows<T> value(const Sequence& sequence, int64_t group) const {
    return {at(sequence, heads + groups + group), width, nullptr, nullptr, size / 2};
  }

  int64_t heads, groups, size, width;

 private:
  T* at(const Sequence& sequence, int64_t slot) const { return data + sequence.begin * width + slot * size; }
  Rows<T> rotated(const Sequence& sequence, int64_t slot) const {
    const int64_t half = size / 2, angle = sequence.angle * half;
    return {at(sequence, slot), width, cos == nullptr ? nullptr : cos + angle, sin == nullptr ? nullptr : sin + angle, half};
  }

  T* data;
  const Wide<T>*cos, *sin;
};

int64_t longest(const std::vector<Sequence>& sequences) {
  int64_t length = 0;
  for (const Sequence& sequence : sequences) length = std::max(length, sequence.length);
  return length;
}

// ---- Forward ----

template <class T, class U>
class Forward {
 public:
  using W = Wide<T>;

  Forward(const JoinedHeads& joined, Tensor& out_ND, Tensor& log_sum_HN)
      : view_(joined, joined.qkv_NW),
        out_(pointer<T>(out_ND)),
        out_stride_(out_ND.size(1)),
        log_sum_(pointer<W>(log_sum_HN)),
        log_sum_stride_(log_sum_HN.size(1)),
        operands_{view_.size},
        longest_(whole_blocks(longest(joined.sequences))),
        rows_(longest_ * view_.size),
        keys_(longest_ * view_.size),
        values_(longest_ * view_.size),
        query_(kQueries * view_.size),
        p_(kQueries * kKeys),
        scores_(kQueries * kKeys),
        sums_(kQueries * view_.size) {}

  void run(const Sequence& sequence, int64_t head) {
    const int64_t padded = whole_blocks(sequence.length), group = head / (view_.heads / view_.groups);
    operands_.gather(view_.key(sequence, group), sequence.length, padded, rows_.get());
    operands_.transposed_second(rows_.get(), padded, keys_.get());
    operands_.gather(view_.value(sequence, group), sequence.length, padded, rows_.get());
    const U* values = operands_.second(rows_.get(), padded, values_.get());
    for (int64_t begin = 0; begin < sequence.length; begin += kQueries) block(sequence, head, begin, padded, values);
  }

 private:
  /// Queries begin .. begin + kQueries.
  void block(const Sequence& sequence, int64_t head, int64_t begin, int64_t padded, const U* values) {
    const auto& k = kernels<T, U>();
    const int64_t size = view_.size, count = std::min(kQueries, sequence.length - begin), end = end_of_keys(sequence, begin);
    const W scale = W(1) / std::sqrt(static_cast<W>(size));
    operands_.gather(view_.query(sequence, head).from(begin), count, kQueries, query_.get());
    for (int64_t key = 0; key < end; key += kKeys) {
      const int64_t keys = std::min(kKeys, end - key);
      const bool first = key == 0;
      multiply({kQueries, keys, size}, query_.get(), size, keys_.get() + key * Operands<T, U>::kPair, padded, false,
               scores_.get(), keys);
      k.softmax_block(scores_.get(), kQueries, keys, begin - key + 1, sequence.context - key, scale, first, largest_, sum_,
                      shrink_, p_.get());
      if (!first) k.scale_rows(shrink_, kQueries, size, sums_.get());
      multiply({kQueries, size, keys}, p_.get(), keys, values + key * size, size, !first, sums_.get(), size);
    }
    const int64_t row = sequence.begin + begin;
    k.finish_rows(sums_.get(), largest_, sum_, count, size, out_ + row * out_stride_ + head * size, out_stride_,
                  log_sum_ + head * log_sum_stride_ + row);
  }

  View<T> view_;
  T* out_;
  int64_t out_stride_;
  W* log_sum_;
  int64_t log_sum_stride_;
  Operands<T, U> operands_;
  int64_t longest_;
  Numbers<U> rows_, keys_, values_, query_, p_;
  Numbers<W> scores_, sums_;
  W largest_[kQueries], sum_[kQueries], shrink_[kQueries];
  Release<U> release_;
};

// ---- Backward ----

/// Scores stand transposed, (keys, queries): what they become are then first operands of the
/// gradients of keys and values as they are, and, in pairs, second ones of the queries' gradient,
/// which is made transposed.
template <class T, class U>
class Backward {
 public:
  using W = Wide<T>;

  Backward(const JoinedHeads& joined, const Tensor& out_ND, const Tensor& dout_ND, const Tensor& log_sum_HN, Tensor& dqkv_NW)
      : view_(joined, joined.qkv_NW),
        gradient_(joined, dqkv_NW),
        out_(pointer<const T>(out_ND)),
        dout_(pointer<const T>(dout_ND)),
        out_stride_(out_ND.size(1)),
        log_sum_(pointer<const W>(log_sum_HN)),
        log_sum_stride_(log_sum_HN.size(1)),
        operands_{view_.size},
        longest_(whole_blocks(longest(joined.sequences))),
        keys_(longest_ * view_.size),
        keys_transposed_(longest_ * view_.size),
        values_(longest_ * view_.size),
        query_(kQueries * view_.size),
        query_pairs_(kQueries * view_.size),
        query_transposed_(kQueries * view_.size),
        dout_rows_(kQueries * view_.size),
        dout_pairs_(kQueries * view_.size),
        dout_transposed_(kQueries * view_.size),
        p_(kKeys * kQueries),
        ds_(kKeys * kQueries),
        ds_pairs_(kKeys * kQueries),
        scores_(kKeys * kQueries),
        dp_(kKeys * kQueries),
        dquery_(kQueries * view_.size),
        dquery_transposed_(kQueries * view_.size),
        dkeys_(longest_ * view_.size),
        dvalues_(longest_ * view_.size) {}

  /// One key/value head and the query heads that it serves.
  void run(const Sequence& sequence, int64_t group) {
    const auto& k = kernels<T, U>();
    const int64_t size = view_.size, length = sequence.length, padded = whole_blocks(length), serves = view_.heads / view_.groups;
    operands_.gather(view_.key(sequence, group), length, padded, keys_.get());
    k.transpose(keys_.get(), padded, size, padded, keys_transposed_.get());
    operands_.gather(view_.value(sequence, group), length, padded, values_.get());
    std::fill_n(dkeys_.get(), padded * size, W(0));
    std::fill_n(dvalues_.get(), padded * size, W(0));
    for (int64_t head = group * serves; head < (group + 1) * serves; ++head) {
      for (int64_t begin = 0; begin < length; begin += kQueries) block(sequence, head, begin, padded);
    }
    scatter(gradient_.key(sequence, group), dkeys_.get(), length);
    scatter(gradient_.value(sequence, group), dvalues_.get(), length);
  }

 private:
  void scatter(const Rows<T>& to, const W* rows, int64_t count) const {
    kernels<T, U>().scatter(rows, count, to.cos, to.sin, view_.size, to.data, to.stride);
  }

  /// Queries begin .. begin + kQueries. Rows that fill up the last block have neither gradient nor
  /// score.
  void block(const Sequence& sequence, int64_t head, int64_t begin, int64_t padded) {
    const auto& k = kernels<T, U>();
    const int64_t size = view_.size, count = std::min(kQueries, sequence.length - begin), end = end_of_keys(sequence, begin);
    const int64_t row = sequence.begin + begin, at = row * out_stride_ + head * size;
    operands_.gather(view_.query(sequence, head).from(begin), count, kQueries, query_.get());
    operands_.transposed_second(query_.get(), kQueries, query_transposed_.get());
    const U* query_pairs = operands_.second(query_.get(), kQueries, query_pairs_.get());
    k.gather(dout_ + at, out_stride_, count, kQueries, nullptr, nullptr, size, dout_rows_.get());
    operands_.transposed_second(dout_rows_.get(), kQueries, dout_transposed_.get());
    const U* dout_pairs = operands_.second(dout_rows_.get(), kQueries, dout_pairs_.get());
    std::fill_n(dots_, kQueries, W(0));
    std::fill_n(log_sums_, kQueries, W(0));
    k.row_dots(out_ + at, dout_ + at, out_stride_, count, size, dots_);
    std::copy_n(log_sum_ + head * log_sum_stride_ + row, count, log_sums_);

    const W scale = W(1) / std::sqrt(static_cast<W>(size));
    for (int64_t key = 0; key < end; key += kKeys) {
      const int64_t keys = std::min(kKeys, end - key);
      multiply({keys, kQueries, size}, keys_.get() + key * size, size, query_transposed_.get(), kQueries, false, scores_.get(),
               kQueries);
      multiply({keys, kQueries, size}, values_.get() + key * size, size, dout_transposed_.get(), kQueries, false, dp_.get(),
               kQueries);
      k.softmax_backward_block(scores_.get(), dp_.get(), log_sums_, dots_, scale, keys, begin - key, sequence.context - key,
                               p_.get(), ds_.get());
      multiply({keys, size, kQueries}, p_.get(), kQueries, dout_pairs, size, true, dvalues_.get() + key * size, size);
      multiply({keys, size, kQueries}, ds_.get(), kQueries, query_pairs, size, true, dkeys_.get() + key * size, size);
      const U* ds_pairs = ds_.get();
      if constexpr (Operands<T, U>::kPair == 2) {
        k.pair_rows(ds_.get(), keys, kQueries, ds_pairs_.get());
        ds_pairs = ds_pairs_.get();
      }
      multiply({size, kQueries, keys}, keys_transposed_.get() + key, padded, ds_pairs, kQueries, key > 0,
               dquery_transposed_.get(), kQueries);
    }
    k.transpose_wide(dquery_transposed_.get(), size, kQueries, size, dquery_.get());
    scatter(gradient_.query(sequence, head).from(begin), dquery_.get(), count);
  }

  View<T> view_, gradient_;
  const T *out_, *dout_;
  int64_t out_stride_;
  const W* log_sum_;
  int64_t log_sum_stride_;
  Operands<T, U> operands_;
  int64_t longest_;
  Numbers<U> keys_, keys_transposed_, values_, query_, query_pairs_, query_transposed_, dout_rows_, dout_pairs_, dout_transposed_,
      p_, ds_, ds_pairs_;
  Numbers<W> scores_, dp_, dquery_, dquery_transposed_, dkeys_, dvalues_;
  W dots_[kQueries], log_sums_[kQueries];
  Release<U> release_;
};

/// Calls body(T, U) with values of the tensors' type and that of the operands of products.
template <class Body>
void with_types(const JoinedHeads& joined, Body body) {
  switch (joined.qkv_NW.scalar_type()) {
    case at::kDouble:
      return body(double(), double());
    case at::kFloat:
      return body(float(), float());
    case at::kBFloat16: {
      const bool multiplies_bf16 = at::native::cpublas::could_pack(at::kBFloat16) && joined.head_size() % 2 == 0;
      return multiplies_bf16 ? body(Bf16(), Bf16()) : body(Bf16(), float());
    }
    default:
      fail<ShapeError>("[ops.attention] projections must be bf16, fp32 or double; found {}",
                       c10::toString(joined.qkv_NW.scalar_type()));
  }
}

/// Calls run(sequence, head) for all of `count` heads of all sequences, those of one head after
/// each other, so that threads share sequences of all lengths alike; for little work one thread is
/// enough. `make` gives each its worker.
template <class Make>
void each_head(const std::vector<Sequence>& sequences, int64_t count, int64_t head_size, Make make) {
  constexpr int64_t kWorthAThread = int64_t{1} << 20;
  const auto per_head = static_cast<int64_t>(sequences.size());
  const int64_t length = whole_blocks(longest(sequences));
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / (length * length * head_size));
  at::parallel_for(0, count * per_head, grain, [&](int64_t begin, int64_t end) {
    auto worker = make();
    for (int64_t i = begin; i < end; ++i) worker.run(sequences[static_cast<size_t>(i % per_head)], i / per_head);
  });
}

}  // namespace

void attend_sequences(const JoinedHeads& joined, Tensor& out_ND, Tensor& log_sum_HN) {
  with_types(joined, [&](auto t, auto u) {
    each_head(joined.sequences, joined.heads, joined.head_size(),
              [&] { return Forward<decltype(t), decltype(u)>(joined, out_ND, log_sum_HN); });
  });
}

void attend_sequences_backward(const JoinedHeads& joined, const Tensor& out_ND, const Tensor& dout_ND, const Tensor& log_sum_HN,
                               Tensor& dqkv_NW) {
  with_types(joined, [&](auto t, auto u) {
    each_head(joined.sequences, joined.groups, joined.head_size(),
              [&] { return Backward<decltype(t), decltype(u)>(joined, out_ND, dout_ND, log_sum_HN, dqkv_NW); });
  });
}

}  // namespace lora::ops
