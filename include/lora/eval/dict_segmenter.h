#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "lora/core/path.h"
#include "lora/eval/segmenter.h"

namespace lora::eval {

class PrefixDictionary;

/// Words of a dictionary on the path of the highest product of their frequencies: the tokens of
/// jieba 0.42.1's `cut(text, HMM=False)` with the same dictionary, white space included ("\r\n" is
/// one token).
///
/// The dictionary has jieba's format: one word per line, UTF-8, `word frequency [tag]` with single
/// spaces between. What follows the frequency is not used, empty lines are skipped. Of a word given
/// twice the last frequency counts, while the sum of all frequencies has both (as in jieba); a
/// frequency of 0 takes the word away.
class DictSegmenter : public Segmenter {
 public:
  /// Throws IoError when the file cannot be read; FormatError, with the line, for what has not the
  /// format, a word of more than 64 characters or with control characters, a frequency beyond
  /// 10^15, a sum of frequencies that is 0 or beyond 2^53, and a file beyond 32 MiB.
  explicit DictSegmenter(const Path& dictionary);
  ~DictSegmenter() override;

  std::vector<std::string_view> cut(std::string_view text) const override;

 private:
  std::unique_ptr<const PrefixDictionary> dictionary_;
};

}  // namespace lora::eval
