#pragma once

#include "generate/row_decoder.h"

namespace lora::generate {

/// One sequence that takes the likeliest token, or a drawn one, at a time.
class SampledRow : public RowDecoder {
 public:
  /// `limit`: most tokens to add, at least 1. The options must outlive it.
  SampledRow(std::vector<int64_t> prompt_ids, int64_t limit, uint64_t seed, const GenerateOptions& options)
      : ids_(std::move(prompt_ids)), left_(limit), random_(seed), options_(options) {}
  void take(const at::Tensor& logits_NV) override;
  std::vector<Continuation> continuations() const override;
  Generation result() const override { return result_; }

 private:
  std::vector<int64_t> ids_;  ///< prompt and answer
  int64_t left_;
  SplitMix64 random_;
  const GenerateOptions& options_;
  Generation result_;
};

}  // namespace lora::generate
