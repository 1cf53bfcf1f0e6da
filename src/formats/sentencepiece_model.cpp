#include "lora/formats/sentencepiece_model.h"

#include <cstdint>

namespace lora::formats {
namespace {

constexpr char kLengthDelimited = 2, kFixed32 = 5;  // wire types; a varint's is 0
constexpr char kUserDefined = 4;

constexpr char tag(int field, char wire_type) { return static_cast<char>(field << 3 | wire_type); }

void append_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

void append_bytes(std::string& out, int field, std::string_view bytes) {
  out += tag(field, kLengthDelimited);
  append_varint(out, bytes.size());
  out += bytes;
}

/// piece, a score of zero, type.
std::string user_defined_piece(std::string_view text) {
  std::string piece;
  append_bytes(piece, 1, text);
  piece += tag(2, kFixed32);
  piece.append(4, '\0');
  piece += tag(3, 0);
  piece += kUserDefined;
  return piece;
}

}  // namespace

std::string with_user_defined_pieces(std::string_view model, std::span<const std::string> pieces) {
  std::string extended(model);
  for (const auto& text : pieces) append_bytes(extended, 1, user_defined_piece(text));
  return extended;
}

std::string without_dummy_prefix(std::string_view model) {
  std::string changed(model);
  append_bytes(changed, 3, {"\x18\x00", 2});  // normalizer_spec.add_dummy_prefix = false
  return changed;
}

}  // namespace lora::formats
