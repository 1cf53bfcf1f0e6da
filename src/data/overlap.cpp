#include "lora/data/overlap.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <unordered_map>

namespace lora::data {
namespace {

std::string_view bytes_of(std::span<const int32_t> tokens) {
  return {reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes()};
}

/// What a row teaches, as text.
std::string answer_of(const Dataset& dataset, int64_t row, const Tokenizer& tokenizer) {
  std::vector<int64_t> ids;
  for (const int32_t token : dataset.tokens(row)) {
    if (token >= 0 && token < tokenizer.vocab_size()) ids.push_back(token);
  }
  return tokenizer.decode(ids);
}

/// Calls `visit` with every run of kOverlapCharacters characters of UTF-8 text.
template <class Visit>
void for_each_run(std::string_view text, const Visit& visit) {
  std::vector<size_t> starts;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) starts.push_back(i);
  }
  starts.push_back(text.size());
  for (size_t i = 0; i + kOverlapCharacters < starts.size(); ++i) {
    visit(text.substr(starts[i], starts[i + kOverlapCharacters] - starts[i]));
  }
}

std::vector<int64_t> marked_rows(const std::vector<bool>& is_marked) {
  std::vector<int64_t> rows;
  for (size_t i = 0; i < is_marked.size(); ++i) {
    if (is_marked[i]) rows.push_back(static_cast<int64_t>(i));
  }
  return rows;
}

}  // namespace

std::vector<int64_t> find_equal_rows(const Dataset& training, const Dataset& evaluation) {
  std::unordered_multimap<std::string_view, size_t> wanted;
  for (int64_t row = 0; row < evaluation.size(); ++row)
    wanted.emplace(bytes_of(evaluation.tokens(row)), static_cast<size_t>(row));
  std::vector<bool> is_equal(static_cast<size_t>(evaluation.size()));
  for (int64_t row = 0; row < training.size() && !wanted.empty(); ++row) {
    const auto [begin, end] = wanted.equal_range(bytes_of(training.tokens(row)));
    for (auto found = begin; found != end; ++found) is_equal[found->second] = true;
    wanted.erase(begin, end);
  }
  return marked_rows(is_equal);
}

std::vector<int64_t> find_sharing_rows(const Dataset& training, const Dataset& evaluation, const Tokenizer& tokenizer) {
  std::vector<std::string> answers;
  for (int64_t row = 0; row < evaluation.size(); ++row) answers.push_back(answer_of(evaluation, row, tokenizer));
  std::unordered_map<std::string_view, std::vector<size_t>> wanted;
  for (size_t row = 0; row < answers.size(); ++row) {
    for_each_run(answers[row], [&](std::string_view run) { wanted[run].push_back(row); });
  }
  std::vector<bool> is_sharing(answers.size());
  for (int64_t row = 0; row < training.size() && !wanted.empty(); ++row) {
    for_each_run(answer_of(training, row, tokenizer), [&](std::string_view run) {
      const auto found = wanted.find(run);
      if (found == wanted.end()) return;
      for (const size_t other : found->second) is_sharing[other] = true;
      wanted.erase(found);
    });
  }
  return marked_rows(is_sharing);
}

Overlap find_overlap(const Dataset& training, const Dataset& evaluation, const Tokenizer* tokenizer) {
  Overlap overlap{.equal = find_equal_rows(training, evaluation), .sharing = {}};
  if (tokenizer != nullptr) overlap.sharing = find_sharing_rows(training, evaluation, *tokenizer);
  return overlap;
}

Dataset without_rows(const Dataset& dataset, const std::vector<int64_t>& rows) {
  Dataset kept;
  kept.format = dataset.format;
  for (int64_t row = 0; row < dataset.size(); ++row) {
    if (!std::ranges::binary_search(rows, row)) kept.add(dataset.example(row));
  }
  kept.num_rows = dataset.num_rows;
  kept.num_bad_rows = dataset.num_bad_rows;
  kept.num_truncated = dataset.num_truncated;
  kept.bad_row_reasons = dataset.bad_row_reasons;
  return kept;
}

}  // namespace lora::data
