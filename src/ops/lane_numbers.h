// Numbers as kernels see them: included once per instruction set, like the kernels themselves,
// hence no include guard and no includes.

LORA_INLINE float load(Bf16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }
LORA_INLINE float load(float value) { return value; }
LORA_INLINE double load(double value) { return value; }

/// To the nearest, ties to even; NaN stays NaN. Without a branch, which would stop vectorisation.
LORA_INLINE void store(Bf16& out, float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40U;
  const uint32_t is_nan = 0U - static_cast<uint32_t>((bits & 0x7fffffffU) > 0x7f800000U);
  out.bits = static_cast<uint16_t>((quiet & is_nan) | (rounded & ~is_nan));
}
LORA_INLINE void store(float& out, float value) { out = value; }
LORA_INLINE void store(double& out, double value) { out = value; }

/// e^x to about 1e-7 relative, in operations that vectorise: limits by comparing bits, range
/// reduction by ln 2 in two parts, Taylor polynomial. Below -87 the result is e^-87, which is as
/// good as 0 beside a largest term of 1. NaN and infinite x give NaN.
LORA_INLINE float exponential(float x) {
  constexpr float kRound = 12582912.0F;        // 1.5 * 2^23: adding it rounds to an integer
  constexpr int32_t kLargest = 0x42b20000;     // 89.0F; as signed integers negative floats are smaller
  constexpr uint32_t kSmallest = 0xc2ae0000U;  // -87.0F; as unsigned ones they are larger, the lowest most
  const auto below = std::bit_cast<int32_t>(x) < kLargest ? std::bit_cast<int32_t>(x) : kLargest;
  const auto inside = static_cast<uint32_t>(below) < kSmallest ? static_cast<uint32_t>(below) : kSmallest;
  const float y = std::bit_cast<float>(inside);
  const float shifted = y * 1.44269504F + kRound;
  const float n = shifted - kRound;
  const float r = (y - n * 0.693359375F) + n * 2.12194440e-4F;
  float p = 1.0F / 5040.0F;
  p = p * r + 1.0F / 720.0F;
  p = p * r + 1.0F / 120.0F;
  p = p * r + 1.0F / 24.0F;
  p = p * r + 1.0F / 6.0F;
  p = p * r + 0.5F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  const auto exponent = (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound) + 127U) << 23;
  return p * std::bit_cast<float>(exponent) + (x - x);
}
LORA_INLINE double exponential(double x) { return std::exp(x); }

/// One head of one token: (x1, x2) to (x1 cos - x2 sin, x2 cos + x1 sin), halves of `half` numbers; `direction` -1 turns
/// back.
template <class From, class To, class W>
LORA_INLINE void rotate_row(const From* x, const W* cos, const W* sin, W direction, int64_t half, To* y) {
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const W first = load(x[i]), second = load(x[i + half]), turn = direction * sin[i];
    store(y[i], first * cos[i] - second * turn);
    store(y[i + half], second * cos[i] + first * turn);
  }
}

// Sums over rows. The compiler's own vectorised sums end with an addition per lane, one after the
// other, which costs as much as a row of a few hundred numbers; these keep lanes in registers and
// end with halves.

constexpr int64_t kLaneBytes = 64;
template <class W>
struct LanesOf {
  typedef W type __attribute__((vector_size(kLaneBytes)));
};
template <class W>
using Lanes = typename LanesOf<W>::type;
/// Numbers of one such vector.
template <class T>
constexpr int64_t kLanes = kLaneBytes / static_cast<int64_t>(sizeof(Wide<T>));

template <class W>
LORA_INLINE Lanes<W> load_lanes(const W* x) {
  Lanes<W> lanes;
  std::memcpy(&lanes, x, sizeof(lanes));
  return lanes;
}
LORA_INLINE Lanes<float> load_lanes(const Bf16* x) {
  typedef uint16_t Bits __attribute__((vector_size(kLaneBytes / 2)));
  typedef uint32_t Words __attribute__((vector_size(kLaneBytes)));
  Bits bits;
  std::memcpy(&bits, x, sizeof(bits));
  const Words words = __builtin_convertvector(bits, Words) << 16;
  Lanes<float> lanes;
  std::memcpy(&lanes, &words, sizeof(lanes));
  return lanes;
}

/// What a term of a sum reads its numbers with: many at once, or one.
struct LanesAt {
  int64_t i;
  template <class T>
  LORA_INLINE auto operator()(const T* x) const {
    return load_lanes(x + i);
  }
};
struct OneAt {
  int64_t i;
  template <class T>
  LORA_INLINE auto operator()(const T* x) const {
    return load(x[i]);
  }
};

/// All lanes combined, half with half.
template <class W, class Combine>
LORA_INLINE W folded(const Lanes<W>& lanes, Combine combine) {
  W parts[kLanes<W>];
  std::memcpy(parts, &lanes, sizeof(lanes));
  for (int64_t half = kLanes<W> / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) parts[i] = combine(parts[i], parts[i + half]);
  }
  return parts[0];
}
template <class W>
LORA_INLINE W sum_of_lanes(const Lanes<W>& lanes) {
  return folded<W>(lanes, [](W a, W b) { return a + b; });
}

/// Sum of term(at) over `count` places; `term` reads with at(pointer).
template <class W, class Term>
LORA_INLINE W sum_over(int64_t count, Term term) {
  constexpr int64_t kStep = kLanes<W>;
  Lanes<W> first = {}, second = {}, third = {}, fourth = {};
  int64_t i = 0;
  for (; i + 4 * kStep <= count; i += 4 * kStep) {
    first += term(LanesAt{i});
    second += term(LanesAt{i + kStep});
    third += term(LanesAt{i + 2 * kStep});
    fourth += term(LanesAt{i + 3 * kStep});
  }
  for (; i + kStep <= count; i += kStep) first += term(LanesAt{i});
  W sum = sum_of_lanes<W>((first + second) + (third + fourth));
  for (; i < count; ++i) sum += term(OneAt{i});
  return sum;
}

template <class W>
LORA_INLINE W largest_of(const W* x, int64_t count) {
  constexpr int64_t kStep = kLanes<W>;
  W largest = x[0];
  int64_t i = 0;
  if (count >= kStep) {
    Lanes<W> lanes = load_lanes(x);
    for (i = kStep; i + kStep <= count; i += kStep) {
      const Lanes<W> next = load_lanes(x + i);
      lanes = next > lanes ? next : lanes;
    }
    largest = folded<W>(lanes, [](W a, W b) { return b > a ? b : a; });
  }
  for (; i < count; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}
