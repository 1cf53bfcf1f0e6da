// Strict JSON over nlohmann-json; private, because public headers do not include it.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string_view>

namespace lora::formats {

/// Objects sorted by key.
using Json = nlohmann::json;
/// Objects in the order of the file, for the few places where it has a meaning. Look-ups are
/// linear.
using OrderedJson = nlohmann::ordered_json;

struct JsonLimits {
  size_t max_depth = 64;  ///< of arrays and objects inside each other
  size_t max_bytes = 256u << 20;
  size_t max_values = 10'000'000;  ///< of every kind, at all depths
};

/// Parses one JSON text. Refuses what the library alone lets pass: duplicate keys, nesting beyond
/// max_depth, text beyond max_bytes, NUL characters, anything after the value; and bytes that are
/// not UTF-8. Throws FormatError with the byte offset; `where` opens the message.
Json parse_json(std::string_view text, std::string_view where, const JsonLimits& limits = {});
OrderedJson parse_ordered_json(std::string_view text, std::string_view where, const JsonLimits& limits = {});

}  // namespace lora::formats
