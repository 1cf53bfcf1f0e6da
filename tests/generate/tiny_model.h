// A causal model small enough to work out by hand: one attention over the embeddings of tokens and
// positions.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "lora/nn/causal_lm.h"
#include "lora/nn/embedding.h"

namespace lora::testing {

struct TinyShape {
  int64_t vocab = 11, dim = 6, positions = 12;
};

/// Legend: B batch, S new tokens, T all tokens so far, D model.
class TinyModelImpl : public nn::CausalLMImpl {
 public:
  explicit TinyModelImpl(const TinyShape& shape = {})
      : shape_(shape), tokens_(shape.vocab, shape.dim), positions_(shape.positions, shape.dim), head_(shape.dim, shape.vocab) {
    register_module("tokens", tokens_);
    register_module("positions", positions_);
    register_module("head", head_);
    at::manual_seed(7);
    at::NoGradGuard no_gradients;
    for (auto& parameter : parameters()) parameter.normal_();
  }

  at::Tensor hidden(const Batch& batch, nn::KvCache* cache) override {
    forward_sizes.push_back(batch.input_ids_BS.sizes().vec());
    trained_mode = trained_mode || is_training();
    with_gradients = with_gradients || at::GradMode::is_enabled();
    const int64_t past = cache == nullptr ? 0 : cache->length();
    const int64_t length = batch.input_ids_BS.size(1);
    const at::Tensor query_BSD =
        tokens_->forward(batch.input_ids_BS) + positions_->forward(at::arange(past, past + length, at::kLong));
    at::Tensor key_BTD = query_BSD;
    if (cache != nullptr) {
      key_BTD = cache->append(0, query_BSD.unsqueeze(1), query_BSD.unsqueeze(1)).first.squeeze(1);
      cache->advance(length);
    }
    const at::Tensor scores_BST = query_BSD.matmul(key_BTD.transpose(1, 2));
    const at::Tensor future_ST = at::ones({length, past + length}, at::kBool).triu(/*diagonal=*/past + 1);
    return scores_BST.masked_fill(future_ST, -INFINITY).softmax(-1).matmul(key_BTD);
  }
  nn::Linear head() override { return head_; }
  int64_t vocab_size() const override { return shape_.vocab; }
  int64_t num_layers() const override { return 1; }
  int64_t max_positions() const override { return shape_.positions; }
  int64_t independent_rows() override { return rows_at_once; }

  std::vector<std::vector<int64_t>> forward_sizes;  ///< of input_ids, per call
  bool trained_mode = false, with_gradients = false;
  int64_t rows_at_once = 1;

 private:
  TinyShape shape_;
  nn::Embedding tokens_, positions_;
  nn::Linear head_;
};

/// log p(. | ids) after the last of `ids`, over the whole vocabulary, by one pass without a cache.
inline std::vector<double> next_logprobs(TinyModelImpl& model, const std::vector<int64_t>& ids) {
  at::NoGradGuard no_gradients;
  Batch batch;
  batch.input_ids_BS = at::tensor(ids, at::kLong).unsqueeze(0);
  const at::Tensor logits_V = model.forward(batch).select(1, -1).squeeze(0).to(at::kDouble);
  std::vector<double> result(logits_V.const_data_ptr<double>(), logits_V.const_data_ptr<double>() + logits_V.numel());
  double sum = 0;
  for (const double logit : result) sum += std::exp(logit);
  for (double& logit : result) logit -= std::log(sum);
  return result;
}

}  // namespace lora::testing
