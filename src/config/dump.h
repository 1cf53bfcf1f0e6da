#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "config/flatten.h"

namespace lora::config {

/// Keys in the schema's order as nested YAML, `depth` levels in.
std::string write_keys(const std::vector<FlatKey>& keys, size_t depth = 0);

}  // namespace lora::config
