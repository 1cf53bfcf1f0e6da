#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace lora::eval {

/// One character of a text and the bytes it takes there.
struct Character {
  char32_t value = 0;
  size_t num_bytes = 0;
};

/// The character that `text` (not empty) starts with. A byte that is not part of well-formed UTF-8
/// is one U+FFFD, as in lora::to_utf8.
Character first_character(std::string_view text);

/// All characters of a text.
std::u32string characters_of(std::string_view text);

/// White space as Python's str.isspace and the \s of its expressions have it.
bool is_space(char32_t character);

/// Throws DataError for a text beyond what scoring takes, 4 MiB; `where` opens the message.
void require_scorable_size(std::string_view text, std::string_view where);

}  // namespace lora::eval
