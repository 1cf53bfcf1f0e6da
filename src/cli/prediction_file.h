// The file of a run that generates an answer for every row: complete or not there, and resumable while it grows.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "lora/core/path.h"

namespace lora::cli {

struct Prediction {
  int64_t row = 0;  ///< number in the data, from 1
  std::string prompt, prediction, reference;
};

/// Prediction and reference of a line: {"prediction", "reference"} as here, or {"predict", "label"} as LLaMA-Factory writes them.
/// Throws FormatError beginning with `where`.
std::pair<std::string, std::string> read_answer(const std::string& line, const std::string& where);

/// Predictions in the order in which they come, kept beside the file until all are there. What an interrupted run with the same
/// `identity` (of model, data and options) left is used again; a line that was cut short is not.
class PredictionFile {
 public:
  /// Throws IoError.
  PredictionFile(Path file, const std::string& identity);

  /// Those of the earlier run, by row.
  const std::map<int64_t, Prediction>& there() const { return predictions_; }
  void add(const Prediction& prediction);
  /// Writes the file, one JSON object per row in the rows' order, and removes what was kept.
  void finish();
  const std::map<int64_t, Prediction>& all() const { return predictions_; }

 private:
  Path file_, part_;
  std::map<int64_t, Prediction> predictions_;
};

}  // namespace lora::cli
