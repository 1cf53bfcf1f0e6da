#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

// Legend: N rows (tokens), I inputs, O outputs, R rank.
namespace lora::ops {

using at::Tensor;

/// Frozen weights side by side and their transpose, reordered once into the layout that the CPU's matrix products want
/// (oneDNN's blocked one). Plain products reorder the weight at every call; one that never changes need not.
class PackedWeight {
 public:
  /// Whether packing pays for products in `dtype` on this machine: bf16 where the processor multiplies bf16, and fp16
  /// where it multiplies fp16. fp32 products gain nothing.
  static bool pays(at::ScalarType dtype);

  /// weights: (out_i, in) each, on the CPU; packed in `dtype`.
  PackedWeight(const std::vector<Tensor>& weights, at::ScalarType dtype);

  /// x (N, I) W^T: (N, sum of O), and dy (N, sum of O) W: (N, I), both in `dtype`.
  Tensor times(const Tensor& x_NI) const;
  Tensor times_transposed(const Tensor& dy_NO) const;
  /// The plain weights again, bit for bit in `dtype`.
  std::vector<Tensor> unpacked() const;

  /// The same products, bit for bit, of weights that are packed for this one and forgotten.
  static Tensor times_once(const std::vector<Tensor>& weights, const Tensor& x_NI);
  static Tensor times_transposed_once(const std::vector<Tensor>& weights, const Tensor& dy_NO);

  at::ScalarType dtype() const { return dtype_; }
  /// What the packed forms hold now; the transpose is made when it is first needed.
  uint64_t bytes() const;

 private:
  at::ScalarType dtype_;
  std::vector<int64_t> rows_;
  int64_t inputs_;
  Tensor forward_;
  mutable std::once_flag backward_is_made_;
  mutable Tensor backward_;
};

/// The weights of linear layers that read the same input and are not trained.
struct FrozenWeights {
  std::vector<Tensor> plain;                             ///< (out_i, in) each; not read when there is a packed form
  std::shared_ptr<const PackedWeight> packed = nullptr;  ///< of the compute type
  std::vector<Tensor> biases = {};                       ///< (out_i) each; empty: none
  std::vector<int64_t> outputs = {};                     ///< out_i
  /// Weights that are not kept: brought for each product, forward and backward, and let go after it. `plain` is empty.
  std::function<std::vector<Tensor>()> bring = nullptr;
  bool packs_brought = false;  ///< brought weights are multiplied as a PackedWeight of them would be, bit for bit
};

/// scale x A^T B^T, added to the outputs of one of the layers.
struct LowRankUpdate {
  Tensor a_RI, b_OR;
  double scale = 1;
  size_t layer = 0;
};

/// All layers' outputs side by side, (..., sum of out): x W_i^T + b_i + their low-rank updates. The A factors of all
/// updates make one product with x; x is kept once for all of them, and only while an update is trained; no gradient of
/// a weight is formed. Computes in the type of x, or autocast's. Gradients reach x and the factors.
/// Source: Hu et al. 2021, eq. 3.
Tensor frozen_linear(const Tensor& x, const FrozenWeights& weights, const std::vector<LowRankUpdate>& updates);

}  // namespace lora::ops
