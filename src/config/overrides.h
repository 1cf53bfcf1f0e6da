// Keys given on the command line.
#pragma once

#include <string_view>

#include "lora/formats/yaml.h"

namespace lora::config {

/// `a.b.c=value` as the tree {a: {b: {c: value}}}; `value` is YAML. The maps around the value have
/// no line. Throws ConfigError.
formats::YamlNode parse_override(std::string_view text);

}  // namespace lora::config
