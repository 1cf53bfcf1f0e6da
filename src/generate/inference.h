// What generating and scoring share: how a model is run when it is only read, and what ids it
// knows.
#pragma once

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <ranges>
#include <string_view>

#include "core/check.h"
#include "lora/nn/causal_lm.h"

namespace lora::generate {

/// For the current scope: no gradients, dropout off. Then the model's mode is as before.
class InferenceGuard {
 public:
  explicit InferenceGuard(nn::CausalLMImpl& model)
      : model_(model), was_training_(model.is_training()) {
    model_.eval();
  }
  ~InferenceGuard() { model_.train(was_training_); }
  InferenceGuard(const InferenceGuard&) = delete;
  InferenceGuard& operator=(const InferenceGuard&) = delete;

 private:
  at::NoGradGuard no_gradients_;
  nn::CausalLMImpl& model_;
  bool was_training_;
};

/// Throws DataError unless every id is in the model's vocabulary and there are not more of them
/// than it has positions.
template <class Ids>
void check_tokens(nn::CausalLMImpl& model, const Ids& ids, std::string_view where) {
  const auto unknown =
      std::ranges::find_if(ids, [&](int64_t id) { return id < 0 || id >= model.vocab_size(); });
  require<DataError>(unknown == ids.end(),
                     "[{}] token ids must be in the model's vocabulary of {}; found {}; was "
                     "another tokenizer used?",
                     where, model.vocab_size(), unknown == ids.end() ? 0 : *unknown);
  require<DataError>(static_cast<int64_t>(ids.size()) <= model.max_positions(),
                     "[{}] must have at most the {} tokens that the model was made for; found {}; "
                     "shorten it",
                     where, model.max_positions(), ids.size());
}

}  // namespace lora::generate
