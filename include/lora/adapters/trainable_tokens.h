#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "lora/nn/adapter.h"

namespace lora {

/// Which rows train beside another method's update, as PEFT's trainable_token_indices says it: ids of the input embedding, or
/// ids by module.
using TokenIndices = std::variant<std::vector<int64_t>, std::vector<std::pair<std::string, std::vector<int64_t>>>>;

/// PEFT's method TRAINABLE_TOKENS: rows of an embedding train and nothing else.
struct TrainableTokensOptions {
  std::vector<int64_t> token_indices = {};
  /// Names or dot-suffixes, or one regular expression over the whole path; nothing: the input embedding.
  std::optional<std::variant<std::vector<std::string>, std::string>> targets = {};
  bool init_weights = true;          ///< the rows start as the table's; false: normal, for tests
  std::string base_model_name = {};  ///< written into adapter_config.json
};

/// Some rows of a table (of an Embedding, or of a Linear that is an output head) in the place of those that the base has:
/// trainable_tokens_delta (tokens, dim), fp32, which despite its name holds the rows themselves. In the forward pass they are
/// rounded to the table's type. Source: PEFT 0.21 tuners/trainable_tokens/layer.py.
class TrainableTokens : public nn::Adapter {
 public:
  /// table_VD: what the rows start as; on the meta device zeros. Throws ConfigError for ids that are out of range or come twice.
  TrainableTokens(const at::Tensor& table_VD, std::vector<int64_t> ids, bool init_weights = true);

  const std::vector<int64_t>& ids() const { return ids_; }

  at::Tensor delta(const at::Tensor& x) override;
  at::Tensor weight_delta() const override;
  at::Tensor apply(const at::Tensor& x, const at::Tensor& y, nn::LinearImpl& layer) override;
  at::Tensor apply_to_rows(const at::Tensor& ids, const at::Tensor& y, const at::Tensor& table) override;
  at::Tensor merged(const at::Tensor& weight, const at::Tensor& base) const override;
  /// Puts the base's rows back into a table that they were merged into, bit for bit.
  void restore(at::Tensor& weight) const;

  at::Tensor trainable_tokens_delta;

 private:
  at::Tensor with_rows(const at::Tensor& weight, const at::Tensor& rows_TD) const;

  std::vector<int64_t> ids_;
  at::Tensor ids_T_, row_of_V_;  ///< the row of each id of the table; -1: none
  at::Tensor original_TD_;       ///< the base's rows
};

/// The same rows in a second place of the same table, a tied output head: nothing of its own. What merging changes, the first
/// place changes.
class TiedTrainableTokens : public nn::Adapter {
 public:
  explicit TiedTrainableTokens(std::shared_ptr<TrainableTokens> rows) : rows_(std::move(rows)) {}

  const TrainableTokens& rows() const { return *rows_; }

  at::Tensor delta(const at::Tensor& x) override { return rows_->delta(x); }
  at::Tensor weight_delta() const override;
  at::Tensor apply(const at::Tensor& x, const at::Tensor& y, nn::LinearImpl& layer) override { return rows_->apply(x, y, layer); }
  at::Tensor apply_to_rows(const at::Tensor& ids, const at::Tensor& y, const at::Tensor& table) override {
    return rows_->apply_to_rows(ids, y, table);
  }
  at::Tensor merged(const at::Tensor& weight, const at::Tensor& /*base*/) const override { return weight; }

 private:
  std::shared_ptr<TrainableTokens> rows_;
};

/// The rows that an adapter of a slot replaces there; null for an adapter of another kind.
const TrainableTokens* token_rows(const nn::Adapter& adapter);

}  // namespace lora
