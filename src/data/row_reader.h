#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "formats/json.h"
#include "lora/core/path.h"

namespace lora::data {

/// One row of a data file before it is looked at.
struct RawRow {
  int64_t number = 0;                    ///< line, or element of the array, from 1
  std::string where;                     ///< "file:line" or "file, element n": opens messages
  std::function<formats::Json()> parse;  ///< throws FormatError when the line is not JSON
};

/// Calls `use` for every row of a JSON-lines file (blank lines are none) or of a file that is one
/// JSON array. Throws IoError, and FormatError for an array that is not JSON or a line of absurd
/// length.
void for_each_row(const Path& file, const std::function<void(const RawRow&)>& use);

}  // namespace lora::data
