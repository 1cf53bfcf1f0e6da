// The JSON files of a checkpoint.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/check.h"
#include "formats/json.h"
#include "lora/core/file.h"

namespace lora::train {

/// Of every JSON file of a checkpoint.
constexpr int64_t kCheckpointFormat = 1;

/// Throws IoError, FormatError.
inline formats::Json read_json(const Path& path) {
  constexpr uint64_t kMaxJsonBytes = 16u << 20;
  return formats::parse_json(read_file(path, kMaxJsonBytes), path.string());
}

/// A member of the type that `get` wants; FormatError for none or another type.
template <class T>
T member(const formats::Json& object, const char* key, const Path& path) {
  constexpr const char* kText = "[{}] must hold {:?} in its proper type; it does not; use another checkpoint";
  try {
    const formats::Json& value = object.at(key);
    // The library would cut 1.5 to 1.
    if constexpr (std::is_integral_v<T>) require<FormatError>(value.is_number_integer(), kText, path.string(), key);
    return value.get<T>();
  } catch (const formats::Json::exception&) {
    fail<FormatError>(kText, path.string(), key);
  }
}

inline void require_format(const formats::Json& json, const Path& path) {
  const auto format = member<int64_t>(json, "format", path);
  require<FormatError>(format == kCheckpointFormat, "[{}] format must be {}; found {}; use the program that wrote it",
                       path.string(), kCheckpointFormat, format);
}

}  // namespace lora::train
