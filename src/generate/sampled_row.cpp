#include "generate/sampled_row.h"

#include <ATen/ATen.h>

#include "generate/next_token.h"

namespace lora::generate {

void SampledRow::take(const at::Tensor& logits_NV) {
  const auto num_new = static_cast<int64_t>(result_.token_ids.size());
  const SampledToken token = next_token(logits_NV.select(0, 0), ids_, num_new, options_, random_);
  add_token(token, options_, result_);
  ids_.push_back(token.id);
  --left_;
}

std::vector<Continuation> SampledRow::continuations() const {
  if (left_ == 0 || result_.finish_reason == "stop") return {};
  return {{.parent = 0, .id = ids_.back()}};
}

}  // namespace lora::generate
