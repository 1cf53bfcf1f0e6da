#pragma once

#include <string>
#include <vector>

#include "lora/core/path.h"
#include "lora/train/step.h"

namespace lora::train {

/// One metrics line without its end, as documented in docs/outputs.md. Numbers read back as the same doubles; NaN and
/// infinities, which JSON lacks, are null. `reg_loss`, `eval_loss`, `best` and `nonfinite` are only there when they are set.
std::string to_json_line(const StepResult& result);

/// The metrics file: one JSON object per optimizer step, steps 1..N without gaps.
class MetricsFile {
 public:
  /// Creates the file (and its directory), or drops lines after `last_step` and an unfinished last line from it, in
  /// one step; warns when lines are missing. Throws IoError, and FormatError for a line that is not a metrics line.
  MetricsFile(const Path& path, int64_t last_step);
  /// Appends a line and hands it to the system at once. Throws IoError.
  void write(const StepResult& result);
  /// What the file holds, oldest first; null reads as NaN. A last line that is not finished is left out. Throws IoError,
  /// FormatError.
  static std::vector<StepResult> read(const Path& path);

 private:
  Path path_;
};

}  // namespace lora::train
