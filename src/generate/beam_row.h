#pragma once

#include <span>

#include "generate/row_decoder.h"

namespace lora::generate {

/// Beam search from one prompt. Source: transformers 5.23, whose numbers (in fp32) and order these are.
class BeamRow : public RowDecoder {
 public:
  /// `limit`: most tokens to add, at least 1. The options must outlive it.
  BeamRow(std::vector<int64_t> prompt_ids, int64_t limit, const GenerateOptions& options);
  void take(const at::Tensor& logits_NV) override;
  std::vector<Continuation> continuations() const override;
  Generation result() const override;

 private:
  struct Beam {
    std::vector<int64_t> ids;      ///< prompt and answer
    std::vector<double> logprobs;  ///< of the answer, by the model
    float score = 0;               ///< running: sum of log-probabilities; ended: what it ranks by
    int64_t parent = 0;            ///< the sequence that its last token continues
    bool has_ended = false;
  };
  /// The likeliest continuations of all running beams, the best first.
  std::vector<Beam> extensions(const at::Tensor& logprobs_NV) const;
  std::vector<Beam> still_running(const std::vector<Beam>& extended) const;
  void keep_best_ended(const std::vector<Beam>& extended);
  bool can_improve() const;
  bool all_have_ended() const;
  std::span<const int64_t> answer(const Beam& beam) const { return std::span(beam.ids).subspan(prompt_length_); }
  Generation generation(const Beam& beam) const;

  const GenerateOptions& options_;
  size_t prompt_length_;
  int64_t limit_, num_new_ = 0;
  std::vector<Beam> running_, ended_;  ///< num_beams of each; of the ended some are none yet
  bool may_improve_ = true, is_over_ = false;
};

}  // namespace lora::generate
