// adapter.method of a run file that names a saved adapter and no method.
#pragma once

#include "config/reader.h"
#include "lora/config/run_config.h"

namespace lora::config {

/// Where init_from is given and the method is not (see `places`), the method is that of the saved adapter. One whose config
/// cannot be read is left to whoever loads it, who says why.
void take_saved_methods(RunConfig& config, const Places& places);

}  // namespace lora::config
