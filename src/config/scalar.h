// Plain scalars of the run file: which text is a number, and how text is written and shown.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lora::config {

enum class NumberFault { kNone, kNotANumber, kOutOfRange };

/// Decimal only: YAML's 0x10, 010, 1_000, .inf and .nan are no numbers here.
NumberFault parse_integer(std::string_view text, int64_t& value);
NumberFault parse_decimal(std::string_view text, double& value);

/// True when `text`, unquoted, would be a number, a boolean or nothing instead of text.
bool is_typed_scalar(std::string_view text);

/// `text` as a YAML scalar that every YAML reader takes for exactly this text, in quotes when it
/// needs them.
std::string yaml_text(std::string_view text);

/// `text` for an error message: on one line, without control characters, not endless.
std::string shown(std::string_view text);

}  // namespace lora::config
