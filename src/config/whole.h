// What must hold between the keys of a run file.
#pragma once

#include <string_view>

#include "config/reader.h"
#include "lora/config/run_config.h"

namespace lora::config {

/// Required keys, keys that exclude each other, keys that bound each other. Throws ConfigError;
/// `name` opens the message where no line can.
void check_whole(const RunConfig& config, const Places& places, std::string_view name, std::string_view command);

}  // namespace lora::config
