#include "generate/padded_batch.h"

#include <ATen/ATen.h>

#include <algorithm>

// Legend: N sequences, S new tokens, T all tokens, padding included, V vocabulary.
namespace lora::generate {
namespace {

int64_t longest_of(const std::vector<const PromptRow*>& prompts) {
  size_t longest = 0;
  for (const PromptRow* prompt : prompts) longest = std::max(longest, prompt->ids.size());
  return static_cast<int64_t>(longest);
}

/// (N, S) on the CPU, zeros before what is shorter than the longest.
at::Tensor padded(const std::vector<const PromptRow*>& prompts, int64_t length) {
  at::Tensor ids_NS = at::zeros({static_cast<int64_t>(prompts.size()), length}, at::kLong);
  int64_t* end = ids_NS.mutable_data_ptr<int64_t>();
  for (const PromptRow* prompt : prompts) {
    end += length;
    std::ranges::copy(prompt->ids, end - prompt->ids.size());
  }
  return ids_NS;
}

}  // namespace

PaddedBatch::PaddedBatch(nn::CausalLMImpl& model, const std::vector<const PromptRow*>& prompts, const at::Device& device)
    : model_(model), device_(device), cache_(model.num_layers()) {
  const int64_t length = longest_of(prompts);
  std::vector<int64_t> rows;
  for (const PromptRow* prompt : prompts) {
    padding_.push_back(length - std::ssize(prompt->ids));
    rows.push_back(prompt->row);
  }
  run(padded(prompts, length), rows);
}

void PaddedBatch::advance(const std::vector<int64_t>& ids) { run(at::tensor(ids, at::kLong).unsqueeze(1)); }

void PaddedBatch::run(const at::Tensor& ids_NS, const std::vector<int64_t>& rows) {
  Batch batch;
  batch.input_ids_BS = ids_NS.to(device_);
  batch.rows = rows;
  // Without padding models have faster ways.
  if (std::ranges::any_of(padding_, [](int64_t padding) { return padding > 0; })) {
    const at::Tensor place_T = at::arange(cache_.length() + ids_NS.size(1), at::kLong);
    batch.attention_mask_BS = place_T.ge(at::tensor(padding_, at::kLong).unsqueeze(1)).to(device_);
  }
  const at::Tensor states_ND = model_.hidden(batch, &cache_).select(1, -1);
  logits_NV_ = model_.logits_of(states_ND).to(at::kCPU, at::kFloat).contiguous();
}

void PaddedBatch::keep(const std::vector<int64_t>& sequences) {
  cache_.select_rows(sequences);
  std::vector<int64_t> padding;
  for (const int64_t sequence : sequences) padding.push_back(padding_.at(static_cast<size_t>(sequence)));
  const int64_t unneeded = *std::ranges::min_element(padding);
  for (int64_t& count : padding) count -= unneeded;
  cache_.drop_first(unneeded);
  padding_ = std::move(padding);
}

}  // namespace lora::generate
