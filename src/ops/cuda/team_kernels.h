// What a team of threads does with one row: the arithmetic of rows.cu. It names nothing of CUDA's, so that the tests run the
// same code on the CPU with a team of ordinary threads.
//
// A team has rank() and size(), and sum(value) and max(value) over its threads, which every thread gets and where every
// thread waits for the others. Each thread handles packs of kPack numbers that are read and written at once: widths are
// then multiples of kPack and pointers of a pack's size; kPack 1 takes any. kWidestPack makes 16 bytes of the narrower type.
#pragma once

#include <c10/macros/Macros.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "ops/wide.h"

namespace lora::ops::rows::team {

using ops::Wide;

template <class T>
constexpr int kPackOf = 16 / static_cast<int>(sizeof(T));

template <class T, int kPack>
struct alignas(sizeof(T) * kPack < 16 ? sizeof(T) * kPack : 16) Pack {
  T at[kPack];
};

template <int kPack, class T>
C10_HOST_DEVICE Pack<T, kPack> load(const T* from) {
  return *reinterpret_cast<const Pack<T, kPack>*>(from);
}

template <int kPack, class T>
C10_HOST_DEVICE void store(T* to, const Pack<T, kPack>& values) {
  *reinterpret_cast<Pack<T, kPack>*>(to) = values;
}

/// Calls body(index) for each of this thread's packs of a row.
template <int kPack, class Team, class Body>
C10_HOST_DEVICE void each_pack(const Team& team, int64_t width, const Body& body) {
  for (int64_t index = team.rank() * kPack; index < width; index += team.size() * kPack) body(index);
}

template <class W>
C10_HOST_DEVICE W sigmoid(W x) {
  return W(1) / (W(1) + std::exp(-x));
}

// Norms. X: type of the residual x, sum; Y: of the activations delta, y.

template <class X, class Y>
struct AddRmsNorm {
  static constexpr int kWidestPack = kPackOf<Y>;
  using W = Wide<X>;
  const X* x;
  const Y* delta;  ///< null: none, and sum is x
  const W* weight;
  W eps;
  int64_t width;
  X* sum;
  Y* y;
  W* inverse_rms;

  template <int kPack, class Team>
  C10_HOST_DEVICE void run(const Team& team, int64_t row) const {
    const int64_t first = row * width;
    W squares = 0;
    each_pack<kPack>(team, width, [&](int64_t index) {
      auto values = load<kPack>(x + first + index);
      if (delta != nullptr) {
        const auto added = load<kPack>(delta + first + index);
        for (int i = 0; i < kPack; ++i) values.at[i] = static_cast<X>(static_cast<W>(values.at[i]) + static_cast<W>(added.at[i]));
        store(sum + first + index, values);
      }
      for (int i = 0; i < kPack; ++i) squares += static_cast<W>(values.at[i]) * static_cast<W>(values.at[i]);
    });
    const W factor = W(1) / std::sqrt(team.sum(squares) / static_cast<W>(width) + eps);
    if (team.rank() == 0) inverse_rms[row] = factor;
    // Each thread reads what it wrote itself.
    each_pack<kPack>(team, width, [&](int64_t index) {
      const auto values = load<kPack>(sum + first + index);
      const auto scale = load<kPack>(weight + index);
      Pack<Y, kPack> out;
      for (int i = 0; i < kPack; ++i) out.at[i] = static_cast<Y>(static_cast<W>(values.at[i]) * factor * scale.at[i]);
      store(y + first + index, out);
    });
  }
};

template <class X, class Y>
struct RmsNormBackward {
  static constexpr int kWidestPack = kPackOf<Y>;
  using W = Wide<X>;
  const Y* dy;
  const X* dsum;  ///< null: none
  const X* sum;
  const W* weight;
  const W* inverse_rms;
  int64_t width;
  X* dx;

  template <int kPack, class Team>
  C10_HOST_DEVICE void run(const Team& team, int64_t row) const {
    const int64_t first = row * width;
    const W factor = inverse_rms[row];
    W dot = 0;
    each_pack<kPack>(team, width, [&](int64_t index) {
      const auto d = load<kPack>(dy + first + index);
      const auto values = load<kPack>(sum + first + index);
      const auto scale = load<kPack>(weight + index);
      for (int i = 0; i < kPack; ++i) dot += static_cast<W>(d.at[i]) * scale.at[i] * static_cast<W>(values.at[i]);
    });
    const W projection = team.sum(dot) * factor * factor * factor / static_cast<W>(width);
    each_pack<kPack>(team, width, [&](int64_t index) {
      const auto d = load<kPack>(dy + first + index);
      const auto values = load<kPack>(sum + first + index);
      const auto scale = load<kPack>(weight + index);
      Pack<X, kPack> out{};
      if (dsum != nullptr) out = load<kPack>(dsum + first + index);
      for (int i = 0; i < kPack; ++i) {
        const W own = static_cast<W>(d.at[i]) * scale.at[i] * factor - static_cast<W>(values.at[i]) * projection;
        out.at[i] = static_cast<X>(dsum != nullptr ? static_cast<W>(out.at[i]) + own : own);
      }
      store(dx + first + index, out);
    });
  }
};

template <class X, class Y>
struct AddLayerNorm {
  static constexpr int kWidestPack = kPackOf<Y>;
  using W = Wide<X>;
  const X* x;
  const Y* delta;  ///< null: none, and sum is x
  W x_scale;
  const W* weight;
  const W* bias;
  W eps;
  int64_t width;
  X* sum;
  Y* y;
  W* mean;
  W* inverse_deviation;

  template <int kPack, class Team>
  C10_HOST_DEVICE void run(const Team& team, int64_t row) const {
    const int64_t first = row * width;
    W total = 0;
    each_pack<kPack>(team, width, [&](int64_t index) {
      auto values = load<kPack>(x + first + index);
      if (delta != nullptr) {
        const auto added = load<kPack>(delta + first + index);
        for (int i = 0; i < kPack; ++i) {
          values.at[i] = static_cast<X>(static_cast<W>(values.at[i]) * x_scale + static_cast<W>(added.at[i]));
        }
        store(sum + first + index, values);
      }
      for (int i = 0; i < kPack; ++i) total += static_cast<W>(values.at[i]);
    });
    const W center = team.sum(total) / static_cast<W>(width);
    W squares = 0;
    each_pack<kPack>(team, width, [&](int64_t index) {
      const auto values = load<kPack>(sum + first + index);
      for (int i = 0; i < kPack; ++i) {
        const W off = static_cast<W>(values.at[i]) - center;
        squares += off * off;
      }
    });
    const W factor = W(1) / std::sqrt(team.sum(squares) / static_cast<W>(width) + eps);
    if (team.rank() == 0) {
      mean[row] = center;
      inverse_deviation[row] = factor;
    }
    each_pack<kPack>(team, width, [&](int64_t index) {
      const auto values = load<kPack>(sum + first + index);
      const auto scale = load<kPack>(weight + index);
      const auto shift = load<kPack>(bias + index);
      Pack<Y, kPack> out;
      for (int i = 0; i < kPack; ++i) {
        out.at[i] = static_cast<Y>((static_cast<W>(values.at[i]) - center) * factor * scale.at[i] + shift.at[i]);
      }
      store(y + first + index, out);
    });
  }
};

template <class X, class Y>
struct LayerNormBackward {
  static constexpr int kWidestPack = kPackOf<Y>;
  using W = Wide<X>;
  const Y* dy;
  const X* dsum;  ///< null: none
  const X* sum;
  const W* weight;
  const W* mean;
  const W* inverse_deviation;
  int64_t width;
  X* dx;

  template <int kPack, class Team>
  C10_HOST_DEVICE void run(const Team& team, int64_t row) const {
    const int64_t first = row * width;
    const W center = mean[row], factor = inverse_deviation[row];
    W total = 0, dot = 0;
    each_pack<kPack>(team, width, [&](int64_t index) {
      const auto d = load<kPack>(dy + first + index);
      const auto values = load<kPack>(sum + first + index);
      const auto scale = load<kPack>(weight + index);
      for (int i = 0; i < kPack; ++i) {
        const W g = static_cast<W>(d.at[i]) * scale.at[i];
        total += g;
        dot += g * (static_cast<W>(values.at[i]) - center);
      }
    });
    const W shift = team.sum(total) / static_cast<W>(width);
    const W projection = team.sum(dot) * factor * factor / static_cast<W>(width);
    each_pack<kPack>(team, width, [&](int64_t index) {
      const auto d = load<kPack>(dy + first + index);
      const auto values = load<kPack>(sum + first + index);
      const auto scale = load<kPack>(weight + index);
      Pack<X, kPack> out{};
      if (dsum != nullptr) out = load<kPack>(dsum + first + index);
      for (int i = 0; i < kPack; ++i) {
        const W inner = static_cast<W>(d.at[i]) * scale.at[i] - shift - (static_cast<W>(values.at[i]) - center) * projection;
        const W own = inner * factor;
        out.at[i] = static_cast<X>(dsum != nullptr ? static_cast<W>(out.at[i]) + own : own);
      }
      store(dx + first + index, out);
    });
  }
};

// Activations.

/// GELU-tanh is x sigmoid(inner(x)) with inner(x) = 2 sqrt(2 / pi) (x + 0.044715 x^3). Beyond 30 the sigmoid is 0 or 1, and
/// the cube stays finite.
template <class W>
C10_HOST_DEVICE W gelu_clipped(W x) {
  return x < W(-30) ? W(-30) : (x > W(30) ? W(30) : x);
}
template <class W>
C10_HOST_DEVICE W gelu_sigmoid(W clipped) {
  return sigmoid(W(1.5957691216057308) * (clipped + W(0.044715) * clipped * clipped * clipped));
}

template <class T>
struct GeluTanh {
  static constexpr int kWidestPack = kPackOf<T>;
  using W = Wide<T>;
  const T* x;
  int64_t width;
  T* y;

  template <int kPack, class Team>
  C10_HOST_DEVICE void run(const Team& team, int64_t row) const {
    const int64_t first = row * width;
    each_pack<kPack>(team, width, [&](int64_t index) {
      auto values = load<kPack>(x + first + index);
      for (int i = 0; i < kPack; ++i) {
        const W value = static_cast<W>(values.at[i]);
        values.at[i] = static_cast<T>(value * gelu_sigmoid(gelu_clipped(value)));
      }
      store(y + first + index, values);
    });
  }
};

template <class T>
struct GeluTanhBackward {
  static constexpr int kWidestPack = kPackOf<T>;
  using W = Wide<T>;
  const T* dy;
  const T* x;
  int64_t width;
  T* dx;

  template <int kPack, class Team>
  C10_HOST_DEVICE void run(const Team& team, int64_t row) const {
    const int64_t first = row * width;
    each_pack<kPack>(team, width, [&](int64_t index) {
      auto d = load<kPack>(dy + first + index);
      const auto values = load<kPack>(x + first + index);
      for (int i = 0; i < kPack; ++i) {
        const W value = gelu_clipped(static_cast<W>(values.at[i])), s = gelu_sigmoid(value);
        const W slope = W(1.5957691216057308) * (W(1) + W(0.134145) * value * value);
        d.at[i] = static_cast<T>(static_cast<W>(d.at[i]) * s * (W(1) + value * (W(1) - s) * slope));
      }
      store(dx + first + index, d);
    });
  }
};

/// gate_up: 2 * width numbers a row, the gate first.
template <class T>
struct SwiGlu {
  static constexpr int kWidestPack = kPackOf<T>;
  using W = Wide<T>;
  const T* gate_up;
  int64_t width;
  T* h;

  template <int kPack, class Team>
  C10_HOST_DEVICE void run(const Team& team, int64_t row) const {
    const T* gate = gate_up + row * 2 * width;
    const T* up = gate + width;
    T* out = h + row * width;
    each_pack<kPack>(team, width, [&](int64_t index) {
      auto g = load<kPack>(gate + index);
      const auto u = load<kPack>(up + index);
      for (int i = 0; i < kPack; ++i) {
        const W value = static_cast<W>(g.at[i]);
        g.at[i] = static_cast<T>(value * sigmoid(value) * static_cast<W>(u.at[i]));
      }
      store(out + index, g);
    });
  }
};

template <class T>
struct SwiGluBackward {
  static constexpr int kWidestPack = kPackOf<T>;
  using W = Wide<T>;
  const T* dh;
  const T* gate_up;
  int64_t width;
  T* dgate_up;

  template <int kPack, class Team>
  C10_HOST_DEVICE void run(const Team& team, int64_t row) const {
    const T* gradient = dh + row * width;
    const T* gate = gate_up + row * 2 * width;
    T* dgate = dgate_up + row * 2 * width;
    each_pack<kPack>(team, width, [&](int64_t index) {
      const auto d = load<kPack>(gradient + index);
      auto g = load<kPack>(gate + index), u = load<kPack>(gate + width + index);
      for (int i = 0; i < kPack; ++i) {
        const W own = static_cast<W>(d.at[i]), value = static_cast<W>(g.at[i]), other = static_cast<W>(u.at[i]);
        const W s = sigmoid(value);
        g.at[i] = static_cast<T>(own * other * s * (W(1) + value * (W(1) - s)));
        u.at[i] = static_cast<T>(own * value * s);
      }
      store(dgate + index, g);
      store(dgate + width + index, u);
    });
  }
};

// Loss.

/// A negative label counts for nothing; one of `width` or more gives NaN, since nobody can be told from here.
template <class T>
struct CrossEntropy {
  static constexpr int kWidestPack = kPackOf<T>;
  using W = Wide<T>;
  T* logits;
  const int64_t* labels;
  bool gradient;
  int64_t width;
  W* losses;

  template <int kPack, class Team>
  C10_HOST_DEVICE void run(const Team& team, int64_t row) const {
    T* own = logits + row * width;
    const int64_t label = labels[row];
    if (label < 0) {
      if (team.rank() == 0) losses[row] = 0;
      if (gradient) each_pack<kPack>(team, width, [&](int64_t index) { store(own + index, Pack<T, kPack>{}); });
      return;
    }
    W thread_largest = -std::numeric_limits<W>::infinity();
    each_pack<kPack>(team, width, [&](int64_t index) {
      const auto values = load<kPack>(own + index);
      for (int i = 0; i < kPack; ++i) {
        const W value = static_cast<W>(values.at[i]);
        if (value > thread_largest) thread_largest = value;
      }
    });
    const W largest = team.max(thread_largest);
    // Read before the next meeting, after which others overwrite the logits.
    const W of_label = label < width ? static_cast<W>(own[label]) - largest : std::numeric_limits<W>::quiet_NaN();
    W thread_sum = 0;
    each_pack<kPack>(team, width, [&](int64_t index) {
      const auto values = load<kPack>(own + index);
      for (int i = 0; i < kPack; ++i) thread_sum += std::exp(static_cast<W>(values.at[i]) - largest);
    });
    const W sum = team.sum(thread_sum);
    if (team.rank() == 0) losses[row] = std::log(sum) - of_label;
    if (!gradient) return;
    const W inverse = W(1) / sum;
    each_pack<kPack>(team, width, [&](int64_t index) {
      auto values = load<kPack>(own + index);
      for (int i = 0; i < kPack; ++i) {
        const W probability = std::exp(static_cast<W>(values.at[i]) - largest) * inverse;
        values.at[i] = static_cast<T>(index + i == label ? probability - W(1) : probability);
      }
      store(own + index, values);
    });
  }
};

// Heads.

/// A row is a token: its heads side by side (q heads, k heads, v heads) are split apart into (B, heads, S, size), or joined
/// again and turned back. q and k are rotated by the angles whose cosines and sines are given, v is copied. A pack lies
/// within half a head.
template <class T>
struct MoveHeads {
  static constexpr int kWidestPack = kPackOf<T>;
  using W = Wide<T>;
  T *together, *q, *k, *v;
  const W *cos, *sin;
  int64_t heads, groups, length, size;
  int64_t table_stride;  ///< numbers between the tables of two rows of the batch; 0: one for all
  bool splits;           ///< else joins

  template <int kPack, class Team>
  C10_HOST_DEVICE void run(const Team& team, int64_t token) const {
    const int64_t b = token / length, s = token % length, half = size / 2, packs = half / kPack;
    const int64_t rotated = heads + groups, all = rotated + groups;
    const W *token_cos = cos + b * table_stride + s * half, *token_sin = sin + b * table_stride + s * half;
    for (int64_t unit = team.rank(); unit < all * packs; unit += team.size()) {
      const int64_t head = unit / packs, i = unit % packs * kPack;
      T* side_by_side = together + (token * all + head) * size + i;
      T* apart = i + (head < heads     ? q + ((b * heads + head) * length + s) * size
                      : head < rotated ? k + ((b * groups + head - heads) * length + s) * size
                                       : v + ((b * groups + head - rotated) * length + s) * size);
      const T* from = splits ? side_by_side : apart;
      T* to = splits ? apart : side_by_side;
      auto first = load<kPack>(from), second = load<kPack>(from + half);
      if (head < rotated) {
        const auto cosine = load<kPack>(token_cos + i), sine = load<kPack>(token_sin + i);
        for (int j = 0; j < kPack; ++j) {
          const W x1 = static_cast<W>(first.at[j]), x2 = static_cast<W>(second.at[j]);
          const W turn = splits ? sine.at[j] : -sine.at[j];
          first.at[j] = static_cast<T>(x1 * cosine.at[j] - x2 * turn);
          second.at[j] = static_cast<T>(x2 * cosine.at[j] + x1 * turn);
        }
      }
      store(to, first);
      store(to + half, second);
    }
  }
};

// AdamW.

/// An AdamWStep as the kernel wants it; `rate` and the correction are of one parameter.
struct AdamWNumbers {
  float one_minus_beta1, beta2, one_minus_beta2, eps, decay, rate, inverse_root_correction2;
};

/// 1 - beta^steps, without losing digits where that is small.
C10_HOST_DEVICE inline double bias_correction(double beta, double steps) {
  return beta == 0 ? 1.0 : -std::expm1(steps * std::log(beta));
}

/// One parameter: G its gradient's type, P its own.
template <class G, class P>
struct AdamW {
  static constexpr int kWidestPack = 4;
  const G* gradient;
  float *master, *exp_avg, *exp_avg_sq;
  P* parameter;

  /// Elements begin .. end.
  template <int kPack, class Team>
  C10_HOST_DEVICE void run(const Team& team, const AdamWNumbers& s, int64_t begin, int64_t end) const {
    each_pack<kPack>(team, end - begin, [&](int64_t offset) {
      const int64_t index = begin + offset;
      const auto g = load<kPack>(gradient + index);
      auto p = load<kPack>(master + index), m = load<kPack>(exp_avg + index), v = load<kPack>(exp_avg_sq + index);
      Pack<P, kPack> out;
      for (int i = 0; i < kPack; ++i) {
        const float d = static_cast<float>(g.at[i]);
        m.at[i] += (d - m.at[i]) * s.one_minus_beta1;
        v.at[i] = v.at[i] * s.beta2 + d * d * s.one_minus_beta2;
        p.at[i] = p.at[i] * s.decay - s.rate * m.at[i] / (std::sqrt(v.at[i]) * s.inverse_root_correction2 + s.eps);
        out.at[i] = static_cast<P>(p.at[i]);
      }
      store(master + index, p);
      store(exp_avg + index, m);
      store(exp_avg_sq + index, v);
      store(parameter + index, out);
    });
  }
};

}  // namespace lora::ops::rows::team
