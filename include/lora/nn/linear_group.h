#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "lora/nn/fast_paths.h"
#include "lora/nn/linear.h"
#include "lora/ops/frozen_linear.h"

namespace lora::nn {

/// Linear layers that read the same input (q, k, v; gate, up; or one alone) and run as one product. The layers stay
/// what they are: names, parameters, adapters and checkpoints know nothing of the group, which is no module.
///
/// Applies while every layer is a plain LinearImpl with a frozen weight and bias; otherwise each layer runs by itself.
/// Low-rank adapters without dropout join the product, others are added. Frozen weights are packed at the first forward
/// pass with gradients where that pays (see ops::PackedWeight), and again after someone asked for the plain weight.
/// Streamed weights are brought for each product, and packed for it where held ones would be: the results are the same.
/// Quantised ones are made anew for each, below each other, and multiplied plain: packing them for one product gains nothing.
class LinearGroup {
 public:
  LinearGroup() = default;
  explicit LinearGroup(std::vector<Linear> layers) : layers_(std::move(layers)) {}

  /// The layers' outputs side by side: (..., in) -> (..., sum of out).
  Tensor forward(const Tensor& x, const FastPaths& fast);
  /// Whether a pass without gradients computes a few rows (see ops/rows.h) of `dtype` apart: a row's outputs are the same,
  /// bit for bit, whatever rows stand beside it. So it is while the layers make a group, every adapter is a low-rank update or
  /// the only one that scales its layer, and the weights are plain and of that type, on the CPU.
  bool keeps_rows_apart(at::ScalarType dtype, const FastPaths& fast) const;
  /// The packed weights for products in `dtype`, made when gradients are on and they pay; null: use the plain ones.
  std::shared_ptr<const ops::PackedWeight> packed_for(at::ScalarType dtype, const FastPaths& fast);

 private:
  /// What the layers' adapters do now, each with the number of its layer.
  using AdaptersByLayer = std::vector<std::pair<size_t, std::shared_ptr<Adapter>>>;
  struct Updates {
    std::vector<ops::LowRankUpdate> joined;  ///< part of the product
    AdaptersByLayer scaling;                 ///< scale the product's outputs, at most one per layer
    AdaptersByLayer others;                  ///< applied after it, one by one
  };
  Updates updates_now() const;
  Tensor scaled_outputs(const Tensor& y, const ops::FrozenWeights& weights, const AdaptersByLayer& scaling);
  bool can_join(const FastPaths& fast) const;
  void say_why_not_joined() const;
  bool is_brought() const;
  bool can_pack_now(at::ScalarType dtype) const;
  bool reads_plain_weights(at::ScalarType dtype, const FastPaths& fast) const;
  ops::FrozenWeights plain_weights() const;
  ops::FrozenWeights held_weights(at::ScalarType dtype, const FastPaths& fast);
  ops::FrozenWeights brought_weights(at::ScalarType dtype, const FastPaths& fast);
  bool packs_brought(at::ScalarType dtype, const FastPaths& fast) const;
  bool packed_is_current() const;
  void pack(at::ScalarType dtype, bool release_plain);
  Tensor one_by_one(const Tensor& x);

  std::vector<Linear> layers_;
  std::shared_ptr<const ops::PackedWeight> packed_;
  std::vector<std::optional<WeightStamp>> seen_;  ///< when it was packed; nothing for a layer whose plain weight was released
  std::optional<at::ScalarType> packs_brought_;   ///< the type in which held weights would be packed by now
};

}  // namespace lora::nn
