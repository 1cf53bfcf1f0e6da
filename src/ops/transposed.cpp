#include "ops/transposed.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "ops/lanes.h"

namespace lora::ops {
namespace {

#define LORA_KERNELS "ops/lane_transpose.h"
#include "ops/kernels_of_all_sets.h"

/// A thread takes whole bands of rows, so that its results fill whole cache lines.
constexpr int64_t kBand = 32;

template <class E>
void transpose_bands(const at::Tensor& x, at::Tensor& y) {
  const int64_t rows = x.size(0), columns = x.size(1);
  const auto& kernel = LORA_BEST_OF(transpose<E>);
  at::parallel_for(0, (rows + kBand - 1) / kBand, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kBand, last = std::min(rows, end * kBand);
    kernel(pointer<const E>(x) + first * columns, last - first, columns, rows, pointer<E>(y) + first);
  });
}

}  // namespace

at::Tensor transposed(const at::Tensor& x) {
  require<ShapeError>(x.device().is_cpu() && x.dim() == 2 && x.is_contiguous(),
                      "[ops.transposed] a contiguous matrix on the CPU must be given; found [{}]", fmt::join(x.sizes(), ", "));
  at::Tensor y = at::empty({x.size(1), x.size(0)}, x.options());
  switch (x.element_size()) {
    case 2:
      transpose_bands<uint16_t>(x, y);
      break;
    case 4:
      transpose_bands<uint32_t>(x, y);
      break;
    case 8:
      transpose_bands<uint64_t>(x, y);
      break;
    default:
      fail<ShapeError>("[ops.transposed] numbers must be of 2, 4 or 8 bytes; found {}", x.element_size());
  }
  return y;
}

}  // namespace lora::ops
