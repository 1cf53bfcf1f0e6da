#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "lora/generate/generate.h"

namespace lora::generate {

/// A prompt to answer, and the number that messages name it by.
struct PromptRow {
  int64_t row = 0;  ///< its number in the data: seeds its sampling, names it in messages
  std::vector<int64_t> ids;
};

/// How many sequences are decoded side by side. Of a beam search every beam is one; one prompt always fits.
struct BatchingOptions {
  int64_t max_sequences = 32;
  int64_t max_tokens = 16384;  ///< of all sequences at their longest, padding included: bounds the cache
};

/// Called on the caller's thread as soon as a prompt has ended, with its place among the prompts. What it throws ends the run.
using OnGeneration = std::function<void(int64_t index, const Generation& generation)>;

/// The seed of a row: complete with it gives what complete_all gives the row.
uint64_t row_seed(uint64_t seed, int64_t row);

/// Continues many prompts as complete continues each (with row_seed where it samples): the same tokens, whatever stands beside
/// them, log-probabilities as close as the model's arithmetic for several rows is to that for one. Prompts of similar length,
/// the longest first, share a batch with a key/value cache; those that end leave it. Results in the prompts' order; `finished`
/// sees each as it comes.
///
/// Throws before anything runs: DataError, naming the row, for a prompt that is empty, has ids outside the vocabulary or leaves
/// no room for the virtual tokens; ConfigError for an option out of its range. Not for use with lora::AdapterRows, which know
/// the rows of one batch.
std::vector<Generation> complete_all(nn::CausalLMImpl& model, std::span<const PromptRow> prompts, const GenerateOptions& options,
                                     const BatchingOptions& batching, const at::Device& device,
                                     const OnGeneration& finished = {});

}  // namespace lora::generate
