// Which keys exist, and what somebody meant who wrote another.
#pragma once

#include <string_view>

#include "config/value.h"

namespace lora::config {

/// Throws ConfigError for the first key in the tree that the run file does not have, naming the
/// nearest one.
void check_keys(const YamlNode& root, const Source& source);

}  // namespace lora::config
