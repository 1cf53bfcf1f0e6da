#include "eval/longest_common_subsequence.h"

#include <bit>
#include <vector>

namespace lora::eval {
namespace {

/// Positions of every symbol in a sequence.
class Positions {
 public:
  Positions(std::span<const uint32_t> sequence, size_t num_symbols) : starts_(num_symbols + 1), positions_(sequence.size()) {
    for (const uint32_t symbol : sequence) ++starts_[symbol];
    size_t sum = 0;
    for (size_t& start : starts_) start = sum += start;
    for (size_t i = sequence.size(); i-- > 0;) positions_[--starts_[sequence[i]]] = static_cast<uint32_t>(i);
  }

  std::span<const uint32_t> of(uint32_t symbol) const {
    return std::span(positions_).subspan(starts_[symbol], starts_[symbol + 1] - starts_[symbol]);
  }

 private:
  std::vector<size_t> starts_;
  std::vector<uint32_t> positions_;
};

/// The algorithm's state, a bit for each position of `a`: 0 where the length grows. Takes in one
/// symbol of `b`.
void advance(std::vector<uint64_t>& state, const std::vector<uint64_t>& matches) {
  uint64_t carry = 0;
  for (size_t i = 0; i < state.size(); ++i) {
    const uint64_t matched = state[i] & matches[i];
    const uint64_t with_carry = state[i] + carry;
    const uint64_t sum = with_carry + matched;
    carry = (with_carry < carry) | (sum < matched);
    state[i] = sum | (state[i] & ~matched);
  }
}

}  // namespace

size_t longest_common_subsequence(std::span<const uint32_t> a, std::span<const uint32_t> b, size_t num_symbols) {
  const Positions positions(a, num_symbols);
  const size_t num_words = (a.size() + 63) / 64;
  std::vector<uint64_t> state(num_words, ~uint64_t{0}), matches(num_words, 0);
  for (const uint32_t symbol : b) {
    const auto where = positions.of(symbol);
    if (where.empty()) continue;
    for (const uint32_t i : where) matches[i / 64] |= uint64_t{1} << (i % 64);
    advance(state, matches);
    for (const uint32_t i : where) matches[i / 64] = 0;
  }
  size_t length = 0;  // bits behind the last position never match and stay 1
  for (const uint64_t word : state) length += static_cast<size_t>(std::popcount(~word));
  return length;
}

}  // namespace lora::eval
