#pragma once

#include <cstdint>
#include <vector>

#include "eval/dictionary_file.h"

namespace lora::eval {

/// Every prefix of every word as a node of a tree, with log-probabilities where a word ends. Nodes
/// lie level by level, children next to each other by character: 16 bytes a node.
class PrefixDictionary {
 public:
  using Node = uint32_t;
  static constexpr Node kRoot = 0;
  static constexpr Node kNone = 0;  ///< the root is nobody's child

  explicit PrefixDictionary(const WordList& words);

  /// The node of the prefix that is one character longer; kNone when no word has it.
  Node child(Node node, char32_t character) const;
  bool is_word(Node node) const { return log_probabilities_[node] <= 0; }
  /// log(frequency) - log(sum of all frequencies) of the word that ends here.
  double log_probability(Node node) const { return log_probabilities_[node]; }
  /// That of a character that is no word: the frequency is 1.
  double unknown_log_probability() const { return unknown_log_probability_; }

 private:
  std::vector<char32_t> characters_;       ///< by node: the last one of its prefix
  std::vector<Node> first_children_;       ///< by node, and one more: children end where those of the next begin
  std::vector<double> log_probabilities_;  ///< by node; positive for a prefix that is no word
  double unknown_log_probability_;
};

}  // namespace lora::eval
