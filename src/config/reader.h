// Fills a RunConfig from a YAML tree; keys that are not given keep their values.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "config/value.h"
#include "lora/config/run_config.h"

namespace lora::config {

/// Full key -> where it was given last, for messages about the whole.
using Places = std::map<std::string, std::string>;

/// Reads every key of `root` into `config`. Throws ConfigError.
void read_tree(const YamlNode& root, const Source& source, RunConfig& config, Places& places);

}  // namespace lora::config
