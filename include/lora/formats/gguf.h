#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "lora/core/dtype.h"

namespace lora::formats {

struct GgufValue;

/// A list of values of one type, which may itself be a list.
struct GgufArray {
  uint32_t item_type = 0;  ///< number of the items' type, also when there are none
  std::vector<GgufValue> items = {};
};

/// The value of a key. An alternative's index is the number that the file has for its type.
struct GgufValue {
  std::variant<uint8_t, int8_t, uint16_t, int16_t, uint32_t, int32_t, float, bool, std::string, GgufArray, uint64_t, int64_t,
               double>
      value;

  /// Null when the value is of another type.
  template <class T>
  const T* as() const {
    return std::get_if<T>(&value);
  }
};

/// "u8", "f32", "string", "array", ... of a value's type number; empty for a number that is none.
std::string_view gguf_type_name(uint32_t type);

/// One tensor of a GGUF file.
struct GgufTensor {
  std::string name = {};
  uint32_t type = 0;                ///< number of its element type in ggml; see ggml_type_name
  std::vector<int64_t> shape = {};  ///< as torch has it: the innermost dimension last
  uint64_t offset = 0, bytes = 0;   ///< from the start of the data
};

/// Everything of a GGUF file but its tensors' data.
struct GgufHeader {
  uint32_t version = 3;
  std::vector<std::pair<std::string, GgufValue>> metadata = {};  ///< in the order of the file
  std::vector<GgufTensor> tensors = {};                          ///< in the order of their data
  uint64_t alignment = 32;                                       ///< of every tensor, and of the data in the file
  uint64_t data_start = 0;                                       ///< offset of the data in the file

  /// Null when there is no such key.
  const GgufValue* find(std::string_view key) const;
};

/// "F32", "Q4_K", ... of an element type's number; empty for one that is not known here.
std::string_view ggml_type_name(uint32_t type);

/// The element type's number of F32, F16 and BF16; nothing for others.
std::optional<uint32_t> ggml_type_of(DType dtype);

/// Bytes of a tensor; nothing for an unknown type, a row that is no whole number of the type's
/// blocks, or a size beyond 63 bits.
std::optional<uint64_t> ggml_tensor_bytes(uint32_t type, std::span<const int64_t> shape);

/// Bounds that a file from outside must keep to.
struct GgufLimits {
  uint64_t max_header_bytes = 512u << 20;
  uint64_t max_items = 8'000'000;  ///< keys, tensors and items of arrays together
};

/// Reads and checks the header of a GGUF file (version 2 or 3, little-endian). `file` is the whole
/// file, of which the tensors' data are not looked at. The tensors found lie inside the file, in
/// their order, one behind the other but for their alignment, and nothing follows them.
/// Throws FormatError with the byte offset; `where` (a file name) opens the message.
/// Source: ggml docs/gguf.md and src/gguf.cpp.
GgufHeader parse_gguf(std::span<const std::byte> file, std::string_view where, const GgufLimits& limits = {});

/// The bytes before the data of a version 3 file with `header`'s keys and tensors, in their order,
/// padded up to the data. Sets each tensor's offset and bytes, and data_start. After each tensor's
/// data the file needs gguf_padding bytes of zeros.
/// Throws FormatError for names and keys that no reader would take back (empty, too long, twice,
/// not UTF-8, NUL) and for tensors without a size.
std::string write_gguf_header(GgufHeader& header);

/// Zeros that follow `bytes` bytes of data.
uint64_t gguf_padding(uint64_t bytes, uint64_t alignment);

}  // namespace lora::formats
