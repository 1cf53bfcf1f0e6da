#include "generate/prompt_lookup.h"

#include <algorithm>

namespace lora::generate {
namespace {

/// Two tokens that stood there before are a reason to guess, three a better one.
constexpr int64_t kShortestMatch = 2, kLongestMatch = 3;
/// 2^3: guesses that always fail are made every ninth time.
constexpr int64_t kMostDoublings = 3;

int64_t size_of(const std::vector<int64_t>& ids) { return static_cast<int64_t>(ids.size()); }

/// How many tokens up to and including `end` are those at the end of all, at most kLongestMatch.
int64_t match_length(const std::vector<int64_t>& ids, int64_t end) {
  int64_t length = 0;
  while (length < kLongestMatch && length <= end && ids[end - length] == ids[size_of(ids) - 1 - length]) ++length;
  return length;
}

/// What follows the longest match, the latest of equals; the size of ids when there is none.
int64_t continuation(const std::vector<int64_t>& ids) {
  int64_t best = kShortestMatch - 1, found = size_of(ids);
  for (int64_t end = size_of(ids) - 2; end >= 0 && best < kLongestMatch; --end) {
    const int64_t length = match_length(ids, end);
    if (length > best) best = length, found = end + 1;
  }
  return found;
}

}  // namespace

std::vector<int64_t> PromptLookup::guess(const std::vector<int64_t>& ids, int64_t most) {
  if (most <= 0) return {};
  if (pause_ > 0) {
    --pause_;
    return {};
  }
  const int64_t from = continuation(ids);
  if (from == size_of(ids)) return {};
  std::vector<int64_t> guess;
  for (int64_t i = from; size_of(guess) < most; ++i) {
    guess.push_back(i < size_of(ids) ? ids[i] : guess[i - size_of(ids)]);  // a loop shorter than the guess goes round
  }
  return guess;
}

void PromptLookup::learn(int64_t right) {
  failures_ = right > 0 ? 0 : failures_ + 1;
  pause_ = failures_ == 0 ? 0 : int64_t{1} << std::min(failures_ - 1, kMostDoublings);
}

}  // namespace lora::generate
