// The wire format of SentencePiece's models, as far as it must be looked into.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>

namespace lora::data {

/// Fields of a message in the protocol-buffer format, one after the other; what cannot be read ends it.
class MessageReader {
 public:
  explicit MessageReader(std::string_view bytes) : rest_(bytes) {}

  /// Goes to the next field; false at the end.
  bool next() {
    if (rest_.empty()) return false;
    const uint64_t tag = varint();
    field_ = tag >> 3;
    bytes_ = {};
    number_ = 0;
    switch (tag & 7) {
      case 0:
        number_ = varint();
        return true;
      case 1:
        return skip(8);
      case 2: {
        const uint64_t size = varint();
        bytes_ = rest_.substr(0, size);
        return skip(size);
      }
      case 5:
        return skip(4);
      default:  // groups, which no file of SentencePiece has
        is_whole_ = false;
        rest_ = {};
        return false;
    }
  }
  uint64_t field() const { return field_; }
  uint64_t number() const { return number_; }
  std::string_view bytes() const { return bytes_; }
  /// Whether everything so far could be read.
  bool is_whole() const { return is_whole_; }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) break;
    }
    return value;
  }

  bool skip(uint64_t size) {
    const bool is_there = size <= rest_.size();
    if (!is_there) is_whole_ = false;
    rest_.remove_prefix(std::min<uint64_t>(size, rest_.size()));
    return is_there;
  }

  std::string_view rest_, bytes_;
  uint64_t field_ = 0, number_ = 0;
  bool is_whole_ = true;
};

}  // namespace lora::data
