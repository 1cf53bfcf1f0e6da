#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/dtype.h"

namespace lora::formats {

/// One tensor of a safetensors file; offsets count from the start of the data, after the header.
struct TensorEntry {
  std::string name = {};
  DType dtype = DType::kF32;
  std::vector<int64_t> shape = {};
  uint64_t begin = 0, end = 0;
};

/// The header of a file: its tensors, not their values.
struct SafetensorsHeader {
  std::vector<TensorEntry> tensors = {};             ///< in the order of their data
  std::map<std::string, std::string> metadata = {};  ///< `__metadata__`
  uint64_t data_start = 0;                           ///< offset of the data in the file
};

/// Bounds that a file from outside must keep to.
struct SafetensorsLimits {
  uint64_t max_header_bytes = 100'000'000;
  size_t max_tensors = 1'000'000;
};

/// Reads and checks the header of a safetensors file. `head` is the file's beginning, at least its
/// first 8 + header-length bytes when the file has that many; `file_size` is the size of the whole
/// file. The data of the tensors found cover the rest of the file exactly, without overlap.
/// Throws FormatError; `where` (a file name) opens the message.
/// Source: safetensors/src/tensor.rs 0.8.0, except that duplicate keys, NUL in names and more
/// than 64 dimensions are always refused.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> head, uint64_t file_size, std::string_view where,
                                           const SafetensorsLimits& limits = {});

/// Length of the JSON header announced in the first 8 bytes. Throws FormatError like
/// parse_safetensors_header.
uint64_t safetensors_header_length(std::span<const std::byte> head, uint64_t file_size, std::string_view where,
                                   const SafetensorsLimits& limits = {});

/// The bytes before the data of a file that holds `tensors`, laid out as the reference writer does:
/// widest dtype first, then by name; the header padded with spaces to a multiple of 8. Sets begin
/// and end of each tensor and sorts `tensors` into file order.
/// Throws FormatError for names that no reader would take back (duplicate, not UTF-8, NUL,
/// "__metadata__") and shapes that have no size.
std::string write_safetensors_header(std::vector<TensorEntry>& tensors, const std::map<std::string, std::string>& metadata);

/// `model.safetensors.index.json`: tensor name -> shard file name. Shard names with path
/// separators, empty maps and anything that is not a map of strings are FormatErrors.
std::map<std::string, std::string> parse_safetensors_index(std::string_view json, std::string_view where);

}  // namespace lora::formats
