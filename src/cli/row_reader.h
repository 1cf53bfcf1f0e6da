// Rows of a file that a model computes with: what `lora score` and `lora merge` read.
#pragma once

#include <string>

#include "cli/options.h"
#include "formats/json.h"
#include "lora/data/example.h"

namespace lora::cli {

/// Reads one line of JSON as tokens with labels: {"input_ids": [...]}, with "labels" or not, {"text": ...} or
/// {"prompt": ..., "completion": ...}.
class RowReader {
 public:
  /// Both must live as long as the reader.
  RowReader(const LoadedModel& loaded, const std::string& file) : loaded_(loaded), file_(file) {}

  /// Throws FormatError, DataError naming the file and the line.
  data::Example read(const std::string& line, int64_t number) const;

 private:
  data::Example tokens_of(const formats::Json& row, const std::string& where) const;

  const LoadedModel& loaded_;
  const std::string& file_;
};

}  // namespace lora::cli
