// The file of a run that generates an answer for every row: complete or not there, and resumable while it grows.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/path.h"

namespace lora::cli {

struct Prediction {
  int64_t row = 0;                                           ///< number in the data, from 1
  std::optional<std::string> prompt, prediction, reference;  ///< nothing: no tokenizer; no reference: the row has no answer
  std::optional<std::vector<int64_t>> token_ids;             ///< what was generated, of rows of tokens and where no text is
};

/// Prediction and reference of a line: {"prediction", "reference"} as here, or {"predict", "label"} as LLaMA-Factory writes them.
/// Throws FormatError beginning with `where`.
std::pair<std::string, std::string> read_answer(const std::string& line, const std::string& where);

/// Where the answers for `file` are until all are there.
inline Path part_of(const Path& file) { return file.string() + ".part"; }

/// Whether a stopped run left answers for `file` that one with another `identity` generated.
bool has_answers_of_another(const Path& file, const std::string& identity);

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
