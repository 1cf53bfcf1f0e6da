#pragma once

#include <array>
#include <atomic>
#include <memory>

#include "lora/adapters/lora.h"

namespace lora {

/// DoRA (Liu et al. 2024): the weight's rows keep a length of their own. With V = W + scale * B A and n the lengths of V's
/// rows (a constant in the backward pass), the output is (magnitude / n) * (V x) + bias. magnitude (out), fp32, starts as n.
///
/// n is found from the factors, without making B A: n^2 = |W|^2 + 2 s sum(W A^T * B) + s^2 sum(B (A A^T) * B), products
/// with W being a few rows more in the layer's own product. Without gradients the scale is found apart and kept until somebody
/// changes what it was found from, so that generating finds it once. Under dropout V x is computed apart, from the dropped input.
/// Source: PEFT 0.21 tuners/lora/dora.py; equation 5 and section 4.3 of the paper.
class DoraLinear : public LoraLinear {
 public:
  /// Reads the layer's weight once, for |W|^2.
  DoraLinear(nn::LinearImpl& layer, int64_t rank, double alpha, const LoraOptions& options);

  /// Sets the magnitude to the lengths of V's rows: after the factors were changed at the start.
  void reset_magnitude(nn::LinearImpl& layer);

  bool scales() const override { return true; }
  at::Tensor rows_for_scale() const override;
  at::Tensor output_scale(const at::Tensor& rows_RO, nn::LinearImpl& layer) override;
  at::Tensor apply(const at::Tensor& x, const at::Tensor& y, nn::LinearImpl& layer) override;
  at::Tensor merged(const at::Tensor& weight, const at::Tensor& base) const override;

  at::Tensor lora_magnitude_vector;

 private:
  void measure(nn::LinearImpl& layer);
  bool is_measured(const nn::LinearImpl& layer) const;
  at::Tensor row_lengths(const at::Tensor& rows_RO) const;

  /// magnitude / n, and the tensors that it was found from besides the layer's weight.
  struct KeptScale {
    std::array<nn::WeightStamp, 3> stamps;
    at::Tensor scale_O;
  };
  std::array<nn::WeightStamp, 3> stamps() const;
  /// Null: none, or one of other values.
  std::shared_ptr<const KeptScale> kept_now() const;

  std::atomic<std::shared_ptr<const KeptScale>> kept_;  ///< threads may generate with one adapter
  at::Tensor base_lengths_;                             ///< |W|^2 per row (a buffer)
  std::optional<nn::WeightStamp> seen_;                 ///< of the weight when its rows were measured
};

/// The same for an Embedding, whose columns have lengths: (magnitude / n) * (E[id] + scale * B A[id]). magnitude (dim).
class DoraEmbedding : public LoraEmbedding {
 public:
  DoraEmbedding(const nn::EmbeddingImpl& layer, int64_t rank, double alpha, const LoraOptions& options);

  void reset_magnitude(const at::Tensor& table_VD);

  bool scales() const override { return true; }
  at::Tensor apply_to_rows(const at::Tensor& ids, const at::Tensor& y, const at::Tensor& table_VD) override;
  at::Tensor merged(const at::Tensor& weight, const at::Tensor& base) const override;

  at::Tensor lora_magnitude_vector;

 private:
  at::Tensor column_lengths(const at::Tensor& table_VD) const;
};

}  // namespace lora
