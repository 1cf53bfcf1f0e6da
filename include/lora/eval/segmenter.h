#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "lora/core/path.h"

namespace lora::eval {

/// Cuts texts into the tokens that ROUGE compares. Safe to share between threads.
class Segmenter {
 public:
  Segmenter() = default;
  virtual ~Segmenter() = default;
  Segmenter(const Segmenter&) = delete;
  Segmenter& operator=(const Segmenter&) = delete;

  /// Tokens in their order, none of them empty, as parts of `text`, which must outlive them. A byte
  /// that is not part of well-formed UTF-8 is a character by itself. Throws DataError for a text
  /// beyond 4 MiB.
  virtual std::vector<std::string_view> cut(std::string_view text) const = 0;
};

/// Every character that is not white space is a token.
class CharSegmenter : public Segmenter {
 public:
  std::vector<std::string_view> cut(std::string_view text) const override;
};

/// Runs of characters that are not white space, as Python's str.split() has them.
class WhitespaceSegmenter : public Segmenter {
 public:
  std::vector<std::string_view> cut(std::string_view text) const override;
};

/// The segmenter named `char`, `whitespace` or `dict` (see DictSegmenter), the last with its
/// dictionary's file. Throws ConfigError for another name, for `dict` without a file and for a file
/// with another segmenter; otherwise what DictSegmenter throws.
std::unique_ptr<Segmenter> make_segmenter(std::string_view name, const Path& dictionary = {});

}  // namespace lora::eval
