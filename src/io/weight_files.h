#pragma once

#include "lora/core/path.h"

namespace lora::io {

/// Whether a model directory holds weights that ModelFiles reads.
bool has_weight_files(const Path& directory);

}  // namespace lora::io
