// Matrices transposed, a block at a time in registers: included once per instruction set, like the kernels that use it, hence
// no include guard and no includes.

constexpr int64_t kTile = 16;
typedef uint32_t TileRow __attribute__((vector_size(kTile * sizeof(uint32_t))));

/// Of every square of 2 x `Width` rows and columns, the upper right quarter changes places with the lower left one.
template <uint32_t Width>
LORA_INLINE void exchange_quarters(TileRow (&rows)[kTile]) {
#define LORA_UPPER(lane) ((lane)&Width ? 16U + (lane)-Width : (lane))
#define LORA_LOWER(lane) ((lane)&Width ? 16U + (lane) : (lane) + Width)
#define LORA_LANES(of)                                                                                                         \
  of(0U), of(1U), of(2U), of(3U), of(4U), of(5U), of(6U), of(7U), of(8U), of(9U), of(10U), of(11U), of(12U), of(13U), of(14U), \
      of(15U)
  const TileRow of_upper = {LORA_LANES(LORA_UPPER)}, of_lower = {LORA_LANES(LORA_LOWER)};
#undef LORA_LANES
#undef LORA_LOWER
#undef LORA_UPPER
#pragma GCC unroll 16
  for (uint32_t row = 0; row < kTile; ++row) {
    if (row & Width) continue;
    const TileRow upper = rows[row], lower = rows[row + Width];
    rows[row] = __builtin_shuffle(upper, lower, of_upper);
    rows[row + Width] = __builtin_shuffle(upper, lower, of_lower);
  }
}

/// One row of a tile: 16 numbers of 4 bytes, or of 2 bytes of two rows of the matrix, pair by pair.
template <class E>
LORA_INLINE TileRow tile_row(const E* x, int64_t row, int64_t columns) {
  TileRow numbers;
  if constexpr (sizeof(E) == 4) {
    std::memcpy(&numbers, x + row * columns, sizeof(numbers));
  } else {
    typedef uint16_t Half __attribute__((vector_size(kTile * sizeof(uint16_t))));
    Half even, odd;
    std::memcpy(&even, x + 2 * row * columns, sizeof(even));
    std::memcpy(&odd, x + (2 * row + 1) * columns, sizeof(odd));
    numbers = __builtin_convertvector(even, TileRow) | __builtin_convertvector(odd, TileRow) << 16;
  }
  return numbers;
}

template <class E>
LORA_INLINE void transpose_tile(const E* x, int64_t columns, int64_t stride, E* y) {
  TileRow rows[kTile];
#pragma GCC unroll 16
  for (int64_t row = 0; row < kTile; ++row) rows[row] = tile_row(x, row, columns);
  exchange_quarters<8>(rows);
  exchange_quarters<4>(rows);
  exchange_quarters<2>(rows);
  exchange_quarters<1>(rows);
#pragma GCC unroll 16
  for (int64_t column = 0; column < kTile; ++column) std::memcpy(y + column * stride, &rows[column], sizeof(rows[column]));
}

/// (rows, columns) to (columns, rows) of numbers of 2, 4 or 8 bytes; `stride` is that of the result.
template <class E>
void transpose(const E* x, int64_t rows, int64_t columns, int64_t stride, E* y) {
  int64_t row = 0;
  if constexpr (sizeof(E) < 8) {
    constexpr int64_t kRows = sizeof(TileRow) / sizeof(E);
    for (; row + kRows <= rows && columns >= kTile; row += kRows) {
      int64_t column = 0;
      for (; column + kTile <= columns; column += kTile) {
        transpose_tile(x + row * columns + column, columns, stride, y + column * stride + row);
      }
      for (; column < columns; ++column) {
        for (int64_t i = row; i < row + kRows; ++i) y[column * stride + i] = x[i * columns + column];
      }
    }
  }
  for (; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) y[column * stride + row] = x[row * columns + column];
  }
}
