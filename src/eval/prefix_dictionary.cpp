#include "eval/prefix_dictionary.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace lora::eval {
namespace {

constexpr double kNoWord = 1;

/// Indexes of the words that count, sorted: of equal ones the last of the file.
std::vector<uint32_t> sorted_words(const WordList& words) {
  std::vector<uint32_t> order(words.size());
  std::iota(order.begin(), order.end(), 0u);
  std::ranges::sort(order, [&](uint32_t a, uint32_t b) {
    const int compared = words.word(a).compare(words.word(b));
    return compared != 0 ? compared < 0 : a > b;
  });
  const auto again = std::ranges::unique(order, {}, [&](uint32_t i) { return words.word(i); });
  order.erase(again.begin(), again.end());
  return order;
}

/// Words that share the prefix of a node: a range of the sorted ones.
struct Branch {
  uint32_t begin, end, depth;
};

}  // namespace

PrefixDictionary::PrefixDictionary(const WordList& words)
    : unknown_log_probability_(-std::log(static_cast<double>(words.total()))) {
  const std::vector<uint32_t> order = sorted_words(words);
  const double log_total = std::log(static_cast<double>(words.total()));
  std::vector<Branch> branches = {{0, static_cast<uint32_t>(order.size()), 0}};
  characters_ = {0};
  for (size_t node = 0; node < branches.size(); ++node) {
    auto [begin, end, depth] = branches[node];
    first_children_.push_back(static_cast<Node>(branches.size()));
    log_probabilities_.push_back(kNoWord);
    if (words.word(order[begin]).size() == depth) {  // the shortest word of a prefix, itself, comes first
      const uint64_t frequency = words.frequency(order[begin++]);
      if (frequency > 0) log_probabilities_.back() = std::log(static_cast<double>(frequency)) - log_total;
    }
    while (begin < end) {
      const char32_t character = words.word(order[begin])[depth];
      uint32_t next = begin;
      while (next < end && words.word(order[next])[depth] == character) ++next;
      characters_.push_back(character);
      branches.push_back({begin, next, depth + 1});
      begin = next;
    }
  }
  first_children_.push_back(static_cast<Node>(branches.size()));
}

PrefixDictionary::Node PrefixDictionary::child(Node node, char32_t character) const {
  const auto begin = characters_.begin() + first_children_[node];
  const auto end = characters_.begin() + first_children_[node + 1];
  const auto found = std::lower_bound(begin, end, character);
  return found != end && *found == character ? static_cast<Node>(found - characters_.begin()) : kNone;
}

}  // namespace lora::eval
