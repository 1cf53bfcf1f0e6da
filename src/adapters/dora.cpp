#include "lora/adapters/dora.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include "adapters/dropout_mask.h"
#include "lora/ops/ops.h"
#include "ops/rows.h"

// Legend: O outputs, I inputs, R rank, V vocabulary, D dim.
namespace lora {
namespace {

using ops::rows::widened;

/// Lengths of the rows of W + scale B A, from |W|^2 per row and W A^T. Rounding may take a row of zeros below zero.
at::Tensor lengths_of_sum(const at::Tensor& squares_O, const at::Tensor& wa_OR, const at::Tensor& a_RI, const at::Tensor& b_OR,
                          double scale) {
  const at::Tensor cross_O = (wa_OR * b_OR).sum(1);
  const at::Tensor own_O = (b_OR.mm(a_RI.mm(a_RI.t())) * b_OR).sum(1);
  return (squares_O + 2 * scale * cross_O + scale * scale * own_O).clamp_min(0).sqrt();
}

/// Rows of zeros have no direction: they stay zeros.
at::Tensor ratio(const at::Tensor& magnitude, const at::Tensor& lengths) {
  const at::Tensor is_zero = lengths == 0;
  return at::where(is_zero, at::zeros_like(magnitude), magnitude / lengths.masked_fill(is_zero, 1));
}

}  // namespace

DoraLinear::DoraLinear(nn::LinearImpl& layer, int64_t rank, double alpha, const LoraOptions& options)
    : LoraLinear(layer.layout(), rank, alpha, options) {
  const auto size = layer.weight.size(0);
  lora_magnitude_vector = register_parameter("lora_magnitude_vector", at::ones({size}, at::kFloat));
  base_lengths_ = register_buffer("base_lengths", at::ones({size}, at::kFloat));
}

/// A model of shapes alone has nothing to measure.
void DoraLinear::measure(nn::LinearImpl& layer) {
  if (layer.weight.is_meta()) return;
  const torch::NoGradGuard no_grad;
  const at::Tensor weight = layer.weight_value();
  base_lengths_.set_data(widened(weight).square().sum(1).to(base_lengths_.options()));
  seen_ = nn::stamp_of(layer.weight);
}

/// Values of a weight that was given up cannot change.
bool DoraLinear::is_measured(const nn::LinearImpl& layer) const {
  return seen_ && (layer.weight_is_released() || nn::stamp_of(layer.weight) == *seen_);
}

void DoraLinear::reset_magnitude(nn::LinearImpl& layer) {
  if (layer.weight.is_meta()) return;
  const torch::NoGradGuard no_grad;
  measure(layer);
  const at::Tensor weight = layer.weight_value();
  const at::Tensor wide = widened(weight), sum = wide + weight_delta().to(wide.scalar_type());
  lora_magnitude_vector.copy_(at::linalg_vector_norm(sum, 2, {1}));
}

std::array<nn::WeightStamp, 3> DoraLinear::stamps() const {
  return {nn::stamp_of(lora_A), nn::stamp_of(lora_B), nn::stamp_of(lora_magnitude_vector)};
}

std::shared_ptr<const DoraLinear::KeptScale> DoraLinear::kept_now() const {
  if (at::GradMode::is_enabled()) return nullptr;
  auto kept = kept_.load();
  return kept && kept->stamps == stamps() ? kept : nullptr;
}

/// Without gradients the scale is found apart, once, and so by the same product whatever rows the layer's input has.
at::Tensor DoraLinear::rows_for_scale() const { return at::GradMode::is_enabled() ? factors().a_RI.detach() : at::Tensor(); }

at::Tensor DoraLinear::row_lengths(const at::Tensor& rows_RO) const {
  const torch::NoGradGuard no_grad;
  const auto [a_RI, b_OR, scale] = factors();
  return lengths_of_sum(base_lengths_, rows_RO.t().to(b_OR.scalar_type()), a_RI, b_OR, scale);
}

at::Tensor DoraLinear::output_scale(const at::Tensor& rows_RO, nn::LinearImpl& layer) {
  const bool has_rows = rows_RO.defined() && rows_RO.size(0) > 0;
  if (!is_measured(layer)) {
    measure(layer);
  } else if (const auto kept = has_rows ? nullptr : kept_now()) {
    return kept->scale_O;
  }
  const at::Tensor scale_O =
      ratio(lora_magnitude_vector, row_lengths(has_rows ? rows_RO : layer.times_weight(factors().a_RI.detach())));
  // A pass with gradients is followed by an update, of which versions may know nothing.
  if (at::GradMode::is_enabled() && layer.weight.requires_grad()) seen_.reset();
  kept_ = at::GradMode::is_enabled() ? nullptr : std::make_shared<const KeptScale>(KeptScale{stamps(), scale_O});
  return scale_O;
}

at::Tensor DoraLinear::apply(const at::Tensor& x, const at::Tensor& y, nn::LinearImpl& layer) {
  const at::Tensor mask = adapters::dropout_mask(x, dropout_now());
  if (!mask.defined()) return Adapter::apply(x, y, layer);
  at::Tensor rows_RO;
  {
    const torch::NoGradGuard no_grad;
    rows_RO = layer.times_weight(factors().a_RI);
  }
  const at::Tensor scale_O = output_scale(rows_RO, layer);
  const at::Tensor dropped = x * mask;
  const auto [a_RI, b_OR, scale] = factors();
  const at::Tensor low = ops::lora_delta(dropped, a_RI, b_OR, scale);
  return y + ops::scale_columns(layer.times_weight(dropped), scale_O - 1) + ops::scale_columns(low, scale_O);
}

at::Tensor DoraLinear::merged(const at::Tensor& weight, const at::Tensor& base) const {
  const at::Tensor delta = weight_delta();
  const at::Tensor lengths_O = at::linalg_vector_norm(base + delta, 2, {1});
  return ratio(lora_magnitude_vector, lengths_O).unsqueeze(1) * (weight + delta);
}

DoraEmbedding::DoraEmbedding(const nn::EmbeddingImpl& layer, int64_t rank, double alpha, const LoraOptions& options)
    : LoraEmbedding(layer.options, rank, alpha, options) {
  lora_magnitude_vector = register_parameter("lora_magnitude_vector", at::ones({layer.options.embedding_dim}, at::kFloat));
}

void DoraEmbedding::reset_magnitude(const at::Tensor& table_VD) {
  if (table_VD.is_meta()) return;
  const torch::NoGradGuard no_grad;
  lora_magnitude_vector.copy_(column_lengths(table_VD));
}

at::Tensor DoraEmbedding::column_lengths(const at::Tensor& table_VD) const {
  const torch::NoGradGuard no_grad;
  const at::Tensor wide_VD = widened(table_VD);
  const at::Tensor a_RV = lora_embedding_A.to(wide_VD.scalar_type()), b_DR = lora_embedding_B.to(wide_VD.scalar_type());
  return lengths_of_sum(wide_VD.square().sum(0), wide_VD.t().mm(a_RV.t()), a_RV, b_DR, scale());
}

at::Tensor DoraEmbedding::apply_to_rows(const at::Tensor& ids, const at::Tensor& y, const at::Tensor& table_VD) {
  const at::Tensor scale_D = ratio(lora_magnitude_vector, column_lengths(table_VD.detach()));
  return ops::scale_columns(y + delta(ids).to(y.scalar_type()), scale_D);
}

at::Tensor DoraEmbedding::merged(const at::Tensor& weight, const at::Tensor& base) const {
  return ratio(lora_magnitude_vector, column_lengths(base)) * (weight + weight_delta());
}

}  // namespace lora
