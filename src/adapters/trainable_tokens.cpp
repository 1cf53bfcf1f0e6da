#include "lora/adapters/trainable_tokens.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/check.h"
#include "lora/nn/linear.h"

// Legend: T trained tokens, V vocabulary, D width.
namespace lora {
namespace {

void check_ids(const std::vector<int64_t>& ids, int64_t vocabulary) {
  std::vector<int64_t> sorted = ids;
  std::sort(sorted.begin(), sorted.end());
  for (size_t i = 0; i < sorted.size(); ++i) {
    require<ConfigError>(sorted[i] >= 0 && sorted[i] < vocabulary,
                         "[adapters.trainable_tokens] token ids must be in [0, {}), the table's rows; found {}; correct "
                         "trainable_token_indices, or add the token to the base first",
                         vocabulary, sorted[i]);
    require<ConfigError>(i == 0 || sorted[i] != sorted[i - 1],
                         "[adapters.trainable_tokens] a token id must come once; found {} again; "
                         "remove it from trainable_token_indices",
                         sorted[i]);
  }
}

at::Tensor row_by_id(const std::vector<int64_t>& ids, int64_t vocabulary) {
  const auto row_of_V = at::full({vocabulary}, -1, at::kLong);
  auto* rows = row_of_V.mutable_data_ptr<int64_t>();
  for (size_t i = 0; i < ids.size(); ++i) rows[ids[i]] = static_cast<int64_t>(i);
  return row_of_V;
}

/// Indices follow the numbers that they are used beside.
void bring(at::Tensor& indices, const at::Tensor& beside) {
  if (indices.device() != beside.device()) indices = indices.to(beside.device());
}

}  // namespace

TrainableTokens::TrainableTokens(const at::Tensor& table_VD, std::vector<int64_t> ids, bool init_weights) : ids_(std::move(ids)) {
  const int64_t vocabulary = table_VD.size(0), width = table_VD.size(1);
  check_ids(ids_, vocabulary);
  ids_T_ = at::tensor(ids_, at::kLong);
  row_of_V_ = row_by_id(ids_, vocabulary);
  const auto count = static_cast<int64_t>(ids_.size());
  const auto wide = table_VD.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  original_TD_ =
      table_VD.is_meta() ? at::zeros({count, width}, wide) : table_VD.detach().index_select(0, ids_T_.to(table_VD.device()));
  const auto start = init_weights ? original_TD_.to(wide, /*non_blocking=*/false, /*copy=*/true)
                                  : at::randn({count, width}, original_TD_.options().dtype(wide));
  trainable_tokens_delta = register_parameter("trainable_tokens_delta", start);
}

at::Tensor TrainableTokens::delta(const at::Tensor& x) {
  fail<ConfigError>("[adapters.trainable_tokens] rows are replaced and nothing is added; a delta was asked for, for {} numbers",
                    x.numel());
}

at::Tensor TrainableTokens::weight_delta() const {
  const auto change_TD = trainable_tokens_delta - original_TD_.to(trainable_tokens_delta.options());
  return with_rows(at::zeros({row_of_V_.size(0), change_TD.size(1)}, change_TD.options()), change_TD);
}

/// The outputs of the tokens anew; those that the base's rows gave get no gradient.
at::Tensor TrainableTokens::apply(const at::Tensor& x, const at::Tensor& y, nn::LinearImpl& layer) {
  if (ids_.empty()) return y;
  bring(ids_T_, y);
  const auto rows_TD = trainable_tokens_delta.to(layer.weight.scalar_type()).to(y.scalar_type());
  at::Tensor y_T = at::matmul(x.to(y.scalar_type()), rows_TD.t()).to(y.scalar_type());
  if (layer.bias.defined()) y_T = y_T + layer.bias.index_select(0, ids_T_).to(y.scalar_type());
  return y.index_copy(-1, ids_T_, y_T);
}

at::Tensor TrainableTokens::apply_to_rows(const at::Tensor& ids, const at::Tensor& y, const at::Tensor& table) {
  if (ids_.empty()) return y;
  bring(row_of_V_, ids);
  const auto row_N = row_of_V_.index_select(0, ids.flatten());
  const auto own = trainable_tokens_delta.to(table.scalar_type()).index_select(0, row_N.clamp_min(0)).view(y.sizes());
  return at::where(row_N.ge(0).view(ids.sizes()).unsqueeze(-1), own.to(y.scalar_type()), y);
}

at::Tensor TrainableTokens::merged(const at::Tensor& weight, const at::Tensor& /*base*/) const {
  return with_rows(weight, trainable_tokens_delta);
}

void TrainableTokens::restore(at::Tensor& weight) const {
  const at::NoGradGuard no_grad;
  weight.copy_(with_rows(weight, original_TD_));
}

at::Tensor TrainableTokens::with_rows(const at::Tensor& weight, const at::Tensor& rows_TD) const {
  return weight.index_copy(0, ids_T_.to(weight.device()), rows_TD.detach().to(weight.options()));
}

at::Tensor TiedTrainableTokens::weight_delta() const {
  return at::zeros({1, 1}, at::kFloat).to(rows_->trainable_tokens_delta.device());
}

const TrainableTokens* token_rows(const nn::Adapter& adapter) {
  if (const auto* tied = dynamic_cast<const TiedTrainableTokens*>(&adapter)) return &tied->rows();
  return dynamic_cast<const TrainableTokens*>(&adapter);
}

}  // namespace lora
