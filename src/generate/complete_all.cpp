#include "lora/generate/complete_all.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <memory>
#include <numeric>

#include "core/check.h"
#include "generate/beam_row.h"
#include "generate/check_tokens.h"
#include "generate/next_token.h"
#include "generate/padded_batch.h"
#include "generate/sampled_row.h"
#include "nn/eval_mode.h"

// Legend: N sequences, V vocabulary.
namespace lora::generate {
namespace {

/// Rows that ended leave a batch once they are this part of its sequences: leaving copies the cache.
constexpr int64_t kPartThatLeaves = 8;

/// One prompt among those that are decoded side by side.
struct Row {
  int64_t index = 0;  ///< among the prompts
  std::unique_ptr<RowDecoder> decoder;
  int64_t first = 0, count = 1;  ///< its sequences in the batch
};

int64_t size_of(const PromptRow& prompt) { return static_cast<int64_t>(prompt.ids.size()); }

class Run {
 public:
  Run(nn::CausalLMImpl& model, std::span<const PromptRow> prompts, const GenerateOptions& options,
      const BatchingOptions& batching, const at::Device& device, const OnGeneration& finished)
      : model_(model),
        prompts_(prompts),
        options_(options),
        batching_(batching),
        device_(device),
        finished_(finished),
        results_(prompts.size()) {}

  void check() const;
  std::vector<Generation> results() &&;

 private:
  int64_t limit_of(const PromptRow& prompt) const {
    return std::min(options_.max_new_tokens, model_.longest_row() - size_of(prompt));
  }
  std::vector<std::vector<int64_t>> batches() const;
  bool fits(int64_t rows, int64_t longest_prompt) const;
  std::unique_ptr<RowDecoder> decoder_of(const PromptRow& prompt) const;
  void decode(const std::vector<int64_t>& indices);
  void deliver_ended(std::vector<Row>& rows);
  void deliver(int64_t index, Generation generation);

  nn::CausalLMImpl& model_;
  std::span<const PromptRow> prompts_;
  const GenerateOptions& options_;
  const BatchingOptions& batching_;
  const at::Device& device_;
  const OnGeneration& finished_;
  std::vector<Generation> results_;
};

void Run::check() const {
  check_options(options_);
  require<ConfigError>(options_.beams.num_beams <= model_.vocab_size(),
                       "[num_beams] must be at most the {} tokens of the vocabulary; found {}", model_.vocab_size(),
                       options_.beams.num_beams);
  require<ConfigError>(batching_.max_sequences >= 1, "[max_sequences] must be at least 1; found {}", batching_.max_sequences);
  require<ConfigError>(batching_.max_tokens >= 1, "[max_tokens] must be at least 1; found {}", batching_.max_tokens);
  for (const PromptRow& prompt : prompts_) {
    require<DataError>(
        !prompt.ids.empty(),
        "[row {}] a prompt must have at least one token; found none; without text it is the tokenizer's begin token", prompt.row);
    check_tokens(model_, prompt.ids, fmt::format("row {}", prompt.row));
  }
}

bool Run::fits(int64_t rows, int64_t longest_prompt) const {
  const int64_t sequences = rows * options_.beams.num_beams;
  const int64_t longest = longest_prompt + std::min(options_.max_new_tokens, model_.longest_row() - longest_prompt);
  return sequences <= batching_.max_sequences && sequences <= batching_.max_tokens / longest;
}

/// Prompts of similar length together, the longest first: what needs most memory shows at once.
std::vector<std::vector<int64_t>> Run::batches() const {
  std::vector<int64_t> order;
  for (int64_t i = 0; i < std::ssize(prompts_); ++i) {
    if (limit_of(prompts_[i]) > 0) order.push_back(i);
  }
  std::ranges::stable_sort(order, std::greater<>(), [&](int64_t i) { return size_of(prompts_[i]); });
  std::vector<std::vector<int64_t>> batches;
  for (const int64_t index : order) {
    const bool has_place = !batches.empty() && fits(std::ssize(batches.back()) + 1, size_of(prompts_[batches.back().front()]));
    if (!has_place) batches.emplace_back();
    batches.back().push_back(index);
  }
  return batches;
}

std::unique_ptr<RowDecoder> Run::decoder_of(const PromptRow& prompt) const {
  if (options_.beams.num_beams > 1) return std::make_unique<BeamRow>(prompt.ids, limit_of(prompt), options_);
  return std::make_unique<SampledRow>(prompt.ids, limit_of(prompt), row_seed(options_.seed, prompt.row), options_);
}

/// Each row's decoder sees the logits of its sequences. Rows do not know of each other, so threads share them.
void take(std::vector<Row>& rows, const at::Tensor& logits_NV) {
  at::parallel_for(0, std::ssize(rows), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Row& row = rows[static_cast<size_t>(i)];
      row.decoder->take(logits_NV.narrow(0, row.first, row.count));
    }
  });
}

/// Gives the batch the sequences that the rows go on with, unless it has them, and few others.
void regroup(std::vector<Row>& rows, PaddedBatch& batch) {
  std::vector<int64_t> sources;
  bool is_moved = false;
  for (const Row& row : rows) {
    const auto continuations = row.decoder->continuations();
    is_moved = is_moved || std::ssize(continuations) != row.count;
    for (size_t i = 0; i < continuations.size(); ++i) {
      sources.push_back(row.first + continuations[i].parent);
      is_moved = is_moved || continuations[i].parent != static_cast<int64_t>(i);
    }
  }
  const int64_t num_ended = batch.size() - std::ssize(sources);
  if (!is_moved && batch.has_room() && num_ended * kPartThatLeaves < batch.size()) return;
  batch.keep(sources);
  int64_t first = 0;
  for (Row& row : rows) {
    row.first = first;
    row.count = std::ssize(row.decoder->continuations());
    first += row.count;
  }
}

/// One for each sequence of the batch; any one for those that have ended.
std::vector<int64_t> next_ids(const std::vector<Row>& rows, int64_t num_sequences) {
  std::vector<int64_t> ids(static_cast<size_t>(num_sequences), 0);
  for (const Row& row : rows) {
    int64_t sequence = row.first;
    for (const Continuation& continuation : row.decoder->continuations()) ids[sequence++] = continuation.id;
  }
  return ids;
}

void Run::decode(const std::vector<int64_t>& indices) {
  std::vector<Row> rows;
  std::vector<const PromptRow*> prompts;
  for (const int64_t index : indices) {
    rows.push_back({.index = index, .decoder = decoder_of(prompts_[index]), .first = std::ssize(rows)});
    prompts.push_back(&prompts_[index]);
  }
  PaddedBatch batch(model_, prompts, device_);
  while (true) {
    take(rows, batch.logits());
    deliver_ended(rows);
    if (rows.empty()) return;
    regroup(rows, batch);
    batch.advance(next_ids(rows, batch.size()));
  }
}

void Run::deliver_ended(std::vector<Row>& rows) {
  for (const Row& row : rows) {
    if (row.decoder->continuations().empty()) deliver(row.index, row.decoder->result());
  }
  std::erase_if(rows, [](const Row& row) { return row.decoder->continuations().empty(); });
}

void Run::deliver(int64_t index, Generation generation) {
  Generation& result = results_[static_cast<size_t>(index)];
  result = std::move(generation);
  if (finished_) finished_(index, result);
}

std::vector<Generation> Run::results() && {
  Generation nothing;
  nothing.finish_reason = "length";
  for (int64_t i = 0; i < std::ssize(prompts_); ++i) {
    if (limit_of(prompts_[i]) <= 0) deliver(i, nothing);
  }
  for (const auto& indices : batches()) decode(indices);
  return std::move(results_);
}

}  // namespace

uint64_t row_seed(uint64_t seed, int64_t row) { return mix_seed({seed, static_cast<uint64_t>(row)}); }

std::vector<Generation> complete_all(nn::CausalLMImpl& model, std::span<const PromptRow> prompts, const GenerateOptions& options,
                                     const BatchingOptions& batching, const at::Device& device, const OnGeneration& finished) {
  Run run(model, prompts, options, batching, device, finished);
  run.check();
  const at::NoGradGuard no_gradients;
  const at::AutoDispatchBelowADInplaceOrView no_autograd;  // a token's many small operations need not pass through it
  const nn::EvalMode eval_mode(model);
  return std::move(run).results();
}

}  // namespace lora::generate
