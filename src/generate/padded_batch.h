// Sequences of different lengths behind one key/value cache.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "lora/generate/complete_all.h"
#include "lora/nn/causal_lm.h"

namespace lora::generate {

/// Sequences that grow side by side, a token each at a time, padded on the left so that they all end at the same place.
/// N sequences, V vocabulary. Logits are in fp32 on the CPU.
class PaddedBatch {
 public:
  /// Runs the prompts; `logits` are those after them.
  PaddedBatch(nn::CausalLMImpl& model, const std::vector<const PromptRow*>& prompts, const at::Device& device);
  const at::Tensor& logits() const { return logits_NV_; }
  int64_t size() const { return static_cast<int64_t>(padding_.size()); }
  /// Whether every sequence can take one more token without leaving the model's positions, padding included.
  bool has_room() const { return cache_.length() < model_.longest_row(); }
  /// Adds a token to each sequence.
  void advance(const std::vector<int64_t>& ids);
  /// Sequence i becomes what sequences[i] was. Padding that nobody needs any more makes room.
  void keep(const std::vector<int64_t>& sequences);

 private:
  /// Runs (N, S) more tokens; `rows`: for messages.
  void run(const at::Tensor& ids_NS, const std::vector<int64_t>& rows = {});

  nn::CausalLMImpl& model_;
  at::Device device_;
  nn::KvCache cache_;
  std::vector<int64_t> padding_;  ///< of each sequence
  at::Tensor logits_NV_;
};

}  // namespace lora::generate
