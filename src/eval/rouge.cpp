#include "lora/eval/rouge.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/check.h"
#include "eval/longest_common_subsequence.h"

namespace lora::eval {
namespace {

using Tokens = std::span<const std::string_view>;
using Ids = std::vector<uint32_t>;

constexpr uint64_t kMaxPairs = 1ull << 32;

/// The different tokens of both sides, sorted: a token's id is its place here.
std::vector<std::string_view> vocabulary_of(Tokens a, Tokens b) {
  std::vector<std::string_view> vocabulary(a.begin(), a.end());
  vocabulary.insert(vocabulary.end(), b.begin(), b.end());
  std::ranges::sort(vocabulary);
  const auto again = std::ranges::unique(vocabulary);
  vocabulary.erase(again.begin(), again.end());
  return vocabulary;
}

Ids ids_of(Tokens tokens, const std::vector<std::string_view>& vocabulary) {
  Ids ids;
  ids.reserve(tokens.size());
  for (const std::string_view token : tokens) {
    const auto place = std::ranges::lower_bound(vocabulary, token);
    ids.push_back(static_cast<uint32_t>(place - vocabulary.begin()));
  }
  return ids;
}

/// The set of n-grams, n = 1 or 2, sorted, each as one number.
std::vector<uint64_t> ngrams_of(const Ids& ids, size_t n) {
  std::vector<uint64_t> ngrams;
  ngrams.reserve(ids.size());
  for (size_t i = 0; i + n <= ids.size(); ++i) {
    ngrams.push_back(uint64_t{ids[i]} << 32 | ids[i + n - 1]);
  }
  std::ranges::sort(ngrams);
  const auto again = std::ranges::unique(ngrams);
  ngrams.erase(again.begin(), again.end());
  return ngrams;
}

size_t num_shared(const std::vector<uint64_t>& a, const std::vector<uint64_t>& b) {
  size_t count = 0;
  for (auto i = a.begin(), j = b.begin(); i != a.end() && j != b.end();) {
    const bool are_equal = *i == *j;
    const bool is_first_less = *i < *j;
    if (are_equal) ++count;
    if (are_equal || is_first_less) ++i;
    if (!is_first_less) ++j;
  }
  return count;
}

RougeScore score_of(size_t shared, size_t hypothesis, size_t reference) {
  if (shared == 0) return {};
  const double precision = static_cast<double>(shared) / static_cast<double>(hypothesis);
  const double recall = static_cast<double>(shared) / static_cast<double>(reference);
  return {precision, recall, 2.0 * ((precision * recall) / (precision + recall + 1e-8))};
}

RougeScore rouge_n(const Ids& hypothesis, const Ids& reference, size_t n) {
  const std::vector<uint64_t> h = ngrams_of(hypothesis, n), r = ngrams_of(reference, n);
  return score_of(num_shared(h, r), h.size(), r.size());
}

}  // namespace

RougeScores rouge(Tokens hypothesis, Tokens reference) {
  const bool is_feasible = reference.empty() || hypothesis.size() <= kMaxPairs / reference.size();
  require<DataError>(is_feasible,
                     "[rouge] the product of both texts' tokens must be at most 2^32; found {} and "
                     "{}; score shorter rows",
                     hypothesis.size(), reference.size());
  const std::vector<std::string_view> vocabulary = vocabulary_of(hypothesis, reference);
  const Ids h = ids_of(hypothesis, vocabulary), r = ids_of(reference, vocabulary);
  const size_t common = longest_common_subsequence(r, h, vocabulary.size());
  return {rouge_n(h, r, 1), rouge_n(h, r, 2), score_of(common, h.size(), r.size())};
}

}  // namespace lora::eval
