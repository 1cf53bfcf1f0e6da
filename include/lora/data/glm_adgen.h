#pragma once

#include <cstdint>
#include <vector>

#include "lora/data/example.h"
#include "lora/data/tokenizer.h"

namespace lora::data {

/// Limits and choices of the ADGEN recipe for ChatGLM-6B (MindFormers' adgen_dataset.py).
struct GlmAdgenOptions {
  int64_t max_source_length = 64;  ///< tokens of the prompt and [gMASK]
  int64_t max_target_length = 64;  ///< tokens of <sop>, the answer and <eop>
  bool train_on_sop = false;       ///< <sop> is a target, too, as in THUDM's ptuning/main.py
  /// Padding, and whatever token of a row equals it, is no target. false: rows are filled up with padding to
  /// max_source_length + max_target_length tokens, and what comes after <sop> are targets, padding included.
  bool ignore_pad_in_loss = true;

  int64_t prompt_limit() const { return max_source_length - 1; }
  int64_t answer_limit() const { return max_target_length - 2; }
};

/// A training row, and how long its parts were before they were cut to the limits.
struct GlmAdgenRow {
  Example example;
  size_t prompt_tokens = 0, answer_tokens = 0;

  bool prompt_is_cut(const GlmAdgenOptions& o) const { return static_cast<int64_t>(prompt_tokens) > o.prompt_limit(); }
  bool answer_is_cut(const GlmAdgenOptions& o) const { return static_cast<int64_t>(answer_tokens) > o.answer_limit(); }
};

/// `prompt` [gMASK] <sop> `answer` <eop>: the answer's tokens and <eop> are targets. `tokenizer` is ChatGLM's. Throws
/// ConfigError when the limits leave no room for a token of the prompt or of the answer.
GlmAdgenRow encode_glm_adgen(const TextPair& text, const Tokenizer& tokenizer, const GlmAdgenOptions& options);

/// A row to generate an answer for and to compare it with.
struct GlmEvalRow {
  std::vector<int64_t> input_ids;      ///< of the prompt, filled up on the right with padding; longer ones are as they are
  std::vector<int64_t> reference_ids;  ///< of the expected answer; not filled up
};

/// Texts are cut by characters, to max_source_length - 2 and max_target_length - 2, then encoded, each followed by [gMASK]
/// <sop>, which decode to nothing. Throws ConfigError as encode_glm_adgen.
GlmEvalRow encode_glm_adgen_eval(const TextPair& text, const Tokenizer& tokenizer, int64_t max_source_length,
                                 int64_t max_target_length);

}  // namespace lora::data
