#include "eval/characters.h"

#include "core/check.h"
#include "lora/core/text.h"

namespace lora::eval {
namespace {

constexpr size_t kMaxTextBytes = 4u << 20;
constexpr char32_t kReplacement = 0xFFFD;

/// Value of a well-formed sequence of more than one byte.
char32_t decode(std::string_view sequence) {
  const auto lead = static_cast<unsigned char>(sequence[0]);
  char32_t value = lead & (0xFFu >> (sequence.size() + 1));
  for (const char c : sequence.substr(1)) value = value << 6 | (static_cast<unsigned char>(c) & 0x3Fu);
  return value;
}

}  // namespace

Character first_character(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return {lead, 1};
  const size_t length = utf8_sequence_length(text);
  if (length == 0) return {kReplacement, 1};
  return {decode(text.substr(0, length)), length};
}

std::u32string characters_of(std::string_view text) {
  std::u32string characters;
  characters.reserve(text.size());
  while (!text.empty()) {
    const Character character = first_character(text);
    characters += character.value;
    text.remove_prefix(character.num_bytes);
  }
  return characters;
}

bool is_space(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

void require_scorable_size(std::string_view text, std::string_view where) {
  require<DataError>(text.size() <= kMaxTextBytes, "[{}] a text must have at most {} bytes; found {}; score shorter rows", where,
                     kMaxTextBytes, text.size());
}

}  // namespace lora::eval
