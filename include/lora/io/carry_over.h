#pragma once

#include "lora/core/path.h"

namespace lora::io {

/// What a model directory says besides its weights, for a model that was made from it: keys of `from`'s config.json that `to`'s
/// has not (but for how weights are stored), and generation_config.json as it is there. Nothing when `from` is no such directory.
/// Throws IoError, FormatError.
void carry_over_config(const Path& from, const Path& to);

}  // namespace lora::io
