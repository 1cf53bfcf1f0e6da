// Which keys of the adapter section belong to which methods.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "lora/config/run_config.h"

namespace lora::config {

/// Keys that are given but mean nothing to adapter.method.
std::vector<std::string> keys_of_other_methods(const AdapterSection& adapter);

/// The methods that know a key of the adapter section.
const std::vector<std::string_view>& methods_of_key(std::string_view key);

}  // namespace lora::config
