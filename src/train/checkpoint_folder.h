// Which checkpoints a folder holds.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "lora/core/path.h"

namespace lora::train {

/// The place of the checkpoint of a step.
Path checkpoint_path(const Path& folder, int64_t step);

/// Checkpoints of a folder by step, newest first.
std::vector<std::pair<int64_t, Path>> checkpoints_in(const Path& folder);

/// Keeps `current` and the newest before it. Those of later steps belong to a run that was given up
/// for an earlier checkpoint.
void prune(const Path& folder, int64_t current, int64_t keep);

}  // namespace lora::train
