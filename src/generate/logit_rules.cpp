#include "generate/logit_rules.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace lora::generate {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

/// A token that came several times is penalised once.
void penalize_repetition(std::span<const int64_t> ids, float penalty, std::span<float> scores) {
  std::vector<int64_t> distinct(ids.begin(), ids.end());
  std::ranges::sort(distinct);
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  for (const int64_t id : distinct) scores[id] = scores[id] < 0 ? scores[id] * penalty : scores[id] / penalty;
}

/// What once followed the last size - 1 tokens never does so again.
void forbid_repeated_ngrams(std::span<const int64_t> ids, size_t size, std::span<float> scores) {
  if (ids.size() < size) return;
  const auto last = ids.last(size - 1);
  for (size_t begin = 0; begin + size <= ids.size(); ++begin) {
    if (std::ranges::equal(ids.subspan(begin, size - 1), last)) scores[ids[begin + size - 1]] = kNever;
  }
}

void forbid(std::span<const int64_t> ids, std::span<float> scores) {
  for (const int64_t id : ids) {
    if (id >= 0 && id < static_cast<int64_t>(scores.size())) scores[id] = kNever;
  }
}

}  // namespace

bool has_rules(const GenerateOptions& options) {
  return options.repetition_penalty != 1 || options.no_repeat_ngram_size > 0 ||
         (options.min_new_tokens > 0 && !options.stop_ids.empty());
}

void apply_rules(const GenerateOptions& options, std::span<const int64_t> ids, int64_t num_new, std::span<float> scores) {
  if (options.repetition_penalty != 1) penalize_repetition(ids, static_cast<float>(options.repetition_penalty), scores);
  if (options.no_repeat_ngram_size > 0) forbid_repeated_ngrams(ids, static_cast<size_t>(options.no_repeat_ngram_size), scores);
  if (num_new < options.min_new_tokens) forbid(options.stop_ids, scores);
}

}  // namespace lora::generate
