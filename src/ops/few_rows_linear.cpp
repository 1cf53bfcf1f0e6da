#include "ops/few_rows_linear.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>

#include "ops/dequantize_rows.h"
#include "ops/rows.h"

// Legend: N rows, I inputs, O outputs of all layers, R rank.
namespace lora::ops {
namespace {

/// Where each layer's outputs begin.
std::vector<int64_t> begins_of(const std::vector<int64_t>& outputs) {
  std::vector<int64_t> begins(outputs.size());
  std::exclusive_scan(outputs.begin(), outputs.end(), begins.begin(), int64_t{0});
  return begins;
}

/// What is added to the products with the weights, (N, O) in the wide type: biases and updates. Undefined: nothing.
Tensor additions(const Tensor& x_NI, const FrozenWeights& weights, const std::vector<LowRankUpdate>& updates, int64_t outputs) {
  if (weights.biases.empty() && updates.empty()) return {};
  const auto wide = rows::wide_type(x_NI.scalar_type());
  Tensor sum_NO = at::zeros({x_NI.size(0), outputs}, x_NI.options().dtype(wide));
  if (!weights.biases.empty()) {
    std::vector<Tensor> biases;
    for (const Tensor& bias : weights.biases) biases.push_back(bias.to(wide));
    sum_NO.add_(at::cat(biases));
  }
  if (updates.empty()) return sum_NO;
  const auto begins = begins_of(weights.outputs);
  const Tensor wide_x_NI = x_NI.to(wide);
  for (const LowRankUpdate& update : updates) {
    Tensor low_NR = at::empty({x_NI.size(0), update.a_RI.size(0)}, sum_NO.options());
    rows::few_rows_product(wide_x_NI, update.a_RI.to(wide).contiguous(), low_NR, 0);
    low_NR.mul_(update.scale);
    rows::few_rows_product(low_NR, update.b_OR.to(wide).contiguous(), sum_NO, begins[update.layer], /*added=*/sum_NO);
  }
  return sum_NO;
}

/// Numbers that stay in a core's cache until they are multiplied.
constexpr int64_t kSlabNumbers = 1 << 16;

/// How many rows of a weight are made at a time: blocks must begin with them.
int64_t rows_of_slab(const QuantizedTensor& bits) {
  const int64_t rows = bits.shape()[0], width = bits.shape()[1];
  for (int64_t slab = std::max<int64_t>(1, kSlabNumbers / width); slab < rows; ++slab) {
    if (can_begin_at(*bits.parts(), slab)) return slab;
  }
  return rows;
}

/// rows::few_rows_product with a weight in few bits.
void few_bits_product(const Tensor& x_NI, const QuantizedTensor& bits, Tensor& y_NO, int64_t first, const Tensor& added_NO) {
  const int64_t rows = bits.shape()[0], slab = rows_of_slab(bits);
  at::parallel_for(0, (rows + slab - 1) / slab, 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowAutograd no_autograd;  // the calling thread's mode is not this one's
    const Tensor memory = at::empty({slab, x_NI.size(1)}, x_NI.options());
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i * slab;
      const Tensor weight = memory.slice(0, 0, std::min(slab, rows - row));
      dequantize_rows(*bits.parts(), row, weight);
      rows::few_rows_product(x_NI, weight, y_NO, first + row, added_NO);
    }
  });
}

}  // namespace

Tensor few_rows_linear(const Tensor& x, const FrozenWeights& weights, const std::vector<LowRankUpdate>& updates,
                       const std::vector<std::shared_ptr<const QuantizedTensor>>& bits) {
  const int64_t outputs = std::accumulate(weights.outputs.begin(), weights.outputs.end(), int64_t{0});
  const Tensor x_NI = x.reshape({-1, x.size(-1)}).contiguous();
  const Tensor added_NO = additions(x_NI, weights, updates, outputs);
  const auto in_shape = [&](const Tensor& y) {
    auto shape = x.sizes().vec();
    shape.back() = outputs;
    return y.view(shape);
  };
  Tensor y_NO = at::empty({x_NI.size(0), outputs}, x_NI.options());
  int64_t begin = 0;
  for (const auto& weight : bits) {
    few_bits_product(x_NI, *weight, y_NO, begin, added_NO);
    begin += weight->shape()[0];
  }
  if (!bits.empty()) return in_shape(y_NO);
  for (const Tensor& weight : weights.bring ? weights.bring() : weights.plain) {
    rows::few_rows_product(x_NI, weight, y_NO, begin, added_NO);
    begin += weight.size(0);
  }
  return in_shape(y_NO);
}

}  // namespace lora::ops
