#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/path.h"

namespace lora::eval {

/// Words with frequencies, as a file in jieba's format has them, in its order; a word may be there
/// twice.
class WordList {
 public:
  size_t size() const { return words_.size(); }
  std::u32string_view word(size_t i) const { return std::u32string_view(characters_).substr(words_[i].begin, words_[i].size); }
  uint64_t frequency(size_t i) const { return words_[i].frequency; }
  /// Sum of all frequencies.
  uint64_t total() const { return total_; }

  void add(std::u32string_view word, uint64_t frequency);

 private:
  struct Word {
    uint32_t begin = 0, size = 0;  ///< in characters_
    uint64_t frequency = 0;
  };
  std::u32string characters_;
  std::vector<Word> words_;
  uint64_t total_ = 0;
};

/// Reads a dictionary; format, limits and errors are those of DictSegmenter.
WordList read_dictionary(const Path& path);

}  // namespace lora::eval
