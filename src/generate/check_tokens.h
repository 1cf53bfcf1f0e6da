// Which token ids a model can take.
#pragma once

#include <algorithm>
#include <string_view>

#include "core/check.h"
#include "lora/nn/causal_lm.h"

namespace lora::generate {

/// Throws DataError unless every id is in the model's vocabulary and there are not more of them
/// than it has positions beside its virtual tokens.
template <class Ids>
void check_tokens(nn::CausalLMImpl& model, const Ids& ids, std::string_view where) {
  const auto unknown = std::ranges::find_if(ids, [&](int64_t id) { return id < 0 || id >= model.vocab_size(); });
  require<DataError>(unknown == ids.end(),
                     "[{}] token ids must be in the model's vocabulary of {}; found {}; was "
                     "another tokenizer used?",
                     where, model.vocab_size(), unknown == ids.end() ? 0 : *unknown);
  require<DataError>(static_cast<int64_t>(ids.size()) <= model.longest_row(),
                     "[{}] must have at most {} tokens, the model's {} less those for virtual ones; found {}; shorten it", where,
                     model.longest_row(), model.max_positions(), ids.size());
}

}  // namespace lora::generate
