// Typed look-ups in the JSON of a row, with the messages of bad rows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "formats/json.h"

namespace lora::data {

/// The string at `key`; empty when there is none or null. Throws DataError.
std::string optional_text(const formats::Json& row, const std::string& key);
/// Text of the string at `key`, which must be there and hold more than white space.
/// Throws DataError.
std::string required_text(const formats::Json& row, const std::string& key);
/// Throws DataError.
const formats::Json& required_list(const formats::Json& row, const std::string& key);

}  // namespace lora::data
