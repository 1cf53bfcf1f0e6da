// Strict JSON over nlohmann-json; private, because public headers do not include it.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace lora::formats {

using Json = nlohmann::json;

struct JsonLimits {
  size_t max_depth = 64;
  size_t max_bytes = 256u << 20;
};

/// Parses one JSON text. Refuses what the library alone lets pass: duplicate keys, nesting beyond max_depth,
/// text beyond max_bytes, bytes that are not UTF-8, anything after the value. Throws FormatError with the byte offset;
/// `where` opens the message.
Json parse_json(std::string_view text, std::string_view where, const JsonLimits& limits = {});

}  // namespace lora::formats
