#pragma once

#include <cstdint>
#include <vector>

namespace lora::generate {

/// Guesses how a sequence goes on: as it did the last time that its last tokens stood in it. Guesses that keep failing are
/// made ever more rarely, since each costs a little more than none. Source: Saxena 2023, prompt lookup decoding.
class PromptLookup {
 public:
  /// Up to `most` tokens that may follow `ids`; empty: no guess.
  std::vector<int64_t> guess(const std::vector<int64_t>& ids, int64_t most);
  /// How many tokens of the last guess were right, unless it was empty.
  void learn(int64_t right);

 private:
  int64_t failures_ = 0;  ///< guesses in a row of which nothing was right
  int64_t pause_ = 0;     ///< how many guesses are not made
};

}  // namespace lora::generate
