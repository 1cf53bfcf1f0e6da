#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "formats/json.h"
#include "lora/core/path.h"
#include "lora/formats/jsonl.h"

namespace lora::data {

/// One row of a data file before it is looked at.
struct RawRow {
  int64_t number = 0;  ///< line, or element of the array, from 1
  std::string line;    ///< of a file of lines
  formats::Json json;  ///< of an array
};

/// True for a file that by its name holds rows; `text` data may stand in any other file as they are.
bool is_json_file(const Path& file);

/// The rows of a JSON-lines file (blank lines are none) or of a file that is one JSON array.
class RowReader {
 public:
  /// Throws IoError, and FormatError for an array that is not JSON.
  explicit RowReader(const Path& file);

  /// Up to `count` rows more, fewer when they are long; none at the end. Throws IoError, and FormatError for a line of
  /// absurd length.
  std::vector<RawRow> next(size_t count);
  /// "file:line" or "file, element n": opens messages about a row.
  std::string where(const RawRow& row) const;
  /// A row's value, taken out of it. Throws FormatError when its line is not JSON. Thread-safe for different rows.
  formats::Json parse(RawRow& row) const;

 private:
  std::string name_;
  std::optional<formats::LineReader> lines_;  ///< nothing: an array
  formats::Json array_;
  size_t next_element_ = 0;
};

}  // namespace lora::data
