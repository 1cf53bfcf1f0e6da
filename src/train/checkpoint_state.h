// Where a run is, as a checkpoint's state.json says it.
#pragma once

#include <cstdint>

#include "lora/train/checkpoint.h"

namespace lora::train {

struct SavedState {
  RunPosition position;
  int64_t nonfinite_in_a_row = 0, skipped_steps = 0;
  GradScaler::State scaler;
};

void write_state(const Path& directory, const StepState& state);

/// Throws IoError; FormatError for a state that no run could have left.
SavedState read_state(const Path& checkpoint);

}  // namespace lora::train
