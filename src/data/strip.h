#pragma once

#include <string_view>

namespace lora::data {

/// `text` without white space at its ends: what Python's str.strip removes, so that rows equal
/// those of the reference programs.
std::string_view strip(std::string_view text);

}  // namespace lora::data
