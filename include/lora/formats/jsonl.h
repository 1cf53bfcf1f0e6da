#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/path.h"

namespace lora::formats {

/// Lines of a text file, one at a time, whatever its size. Ends at "\n" or "\r\n"; a byte-order
/// mark at the start is dropped; a last line without an end counts. Throws IoError, and FormatError
/// for a line beyond max_line_bytes.
class LineReader {
 public:
  explicit LineReader(const Path& path, size_t max_line_bytes = 64u << 20);
  /// Next line without its end, or nothing at the end of the file.
  std::optional<std::string> next();
  /// Number of the line that next() returned last, from 1.
  int64_t line_number() const { return line_number_; }

 private:
  /// False at the end of the file.
  bool read_block();

  Path path_;
  size_t max_line_bytes_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  std::vector<char> block_;
  std::string_view rest_;  ///< of the block: what no line has taken yet
  int64_t line_number_ = 0;
};

}  // namespace lora::formats
