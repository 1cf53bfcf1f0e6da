#pragma once

#include <string>
#include <vector>

#include "lora/core/path.h"
#include "lora/train/step.h"

namespace lora::train {

/// One metrics line, as documented in docs/outputs.md.
std::string to_json_line(const StepResult& result);

/// The metrics file: one JSON object per optimizer step, steps 1..N without gaps. Opening it drops lines after
/// `last_step` and an unfinished last line.
class MetricsFile {
 public:
  MetricsFile(const Path& path, int64_t last_step);
  void write(const StepResult& result);
  /// What the file holds, oldest first.
  static std::vector<StepResult> read(const Path& path);

 private:
  Path path_;
};

}  // namespace lora::train
