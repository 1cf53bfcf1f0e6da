#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lora {

/// True when `text` is well-formed UTF-8 (no overlong forms, no surrogates).
bool is_utf8(std::string_view text);

/// Bytes of the well-formed UTF-8 sequence that `text` (not empty) starts with; 0 when there is none.
size_t utf8_sequence_length(std::string_view text);

/// Offset of the first byte that is not part of well-formed UTF-8; the size of `text` when all is
/// well.
size_t find_invalid_utf8(std::string_view text);

/// `text` with every byte that is not part of well-formed UTF-8 replaced by U+FFFD: what can be put
/// into JSON.
std::string to_utf8(std::string_view text);

/// `text` with control characters other than tab and line feed written as \xNN, so that text from
/// outside cannot drive a terminal.
std::string escape_control(std::string_view text);

/// Up to `count` names of `known` nearest to `name` by edit distance, best first.
std::vector<std::string> nearest_names(std::string_view name, std::span<const std::string> known, size_t count = 3);

/// Text safe inside HTML elements and attributes.
std::string escape_html(std::string_view text);

/// 1234567 -> "1,234,567".
std::string with_thousands(long long value);

/// "5GB", "512 MiB", "1000000" as bytes (KB, MB, GB, TB count in 1000s; KiB, ... in 1024s). Throws
/// ConfigError; `where` opens the message.
unsigned long long parse_bytes(std::string_view text, std::string_view where);

/// "1.5 GiB".
std::string human_bytes(unsigned long long bytes);

}  // namespace lora
