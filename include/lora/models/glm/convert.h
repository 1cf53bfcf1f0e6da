#pragma once

#include "lora/core/path.h"
#include "lora/models/glm/load.h"

namespace lora::glm {

/// Copies a model directory in the published layout into `directory`, which must exist, changing type or sharding; streams tensor
/// by tensor. Norms are written in fp32, as published; inv_freq, which every model can compute, and the copy of a tied head are
/// left out. Throws as load() does.
GlmConfig convert_hf(const Path& from, const Path& directory, const SaveOptions& options = {});

}  // namespace lora::glm
