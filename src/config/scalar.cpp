#include "config/scalar.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "lora/core/text.h"

namespace lora::config {
namespace {

constexpr size_t kMaxShown = 80;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

std::string_view without_digits(std::string_view text) {
  const auto end = std::find_if_not(text.begin(), text.end(), is_digit);
  return text.substr(static_cast<size_t>(end - text.begin()));
}

bool is_sign(char c) { return c == '+' || c == '-'; }

std::string_view without_sign(std::string_view text) { return !text.empty() && is_sign(text.front()) ? text.substr(1) : text; }

/// 0 or digits without a leading zero, which other readers take for octal.
bool is_plain_digits(std::string_view text) {
  return !text.empty() && without_digits(text).empty() && (text.size() == 1 || text[0] != '0');
}

bool is_integer(std::string_view text) { return is_plain_digits(without_sign(text)); }

bool is_exponent(std::string_view text) {
  if (text.size() < 2 || (text[0] != 'e' && text[0] != 'E')) return false;
  const std::string_view digits = without_sign(text.substr(1));
  return !digits.empty() && without_digits(digits).empty();
}

bool is_decimal(std::string_view text) {
  text = without_sign(text);
  std::string_view rest = without_digits(text);
  const std::string_view whole = text.substr(0, text.size() - rest.size());
  if (!whole.empty() && !is_plain_digits(whole)) return false;
  bool has_digits = !whole.empty();
  if (!rest.empty() && rest[0] == '.') {
    const std::string_view after = without_digits(rest.substr(1));
    has_digits |= after.size() + 1 < rest.size();
    rest = after;
  }
  return has_digits && (rest.empty() || is_exponent(rest));
}

template <class T>
NumberFault convert(std::string_view text, T& value) {
  if (text[0] == '+') text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() ? NumberFault::kNone : NumberFault::kOutOfRange;
}

std::string lower_case(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

/// Words that some YAML reader takes for a boolean or for nothing.
bool is_reserved_word(std::string_view text) {
  static constexpr std::array<std::string_view, 10> kWords = {"", "null", "~", "true", "false", "no", "yes", "on", "off", "y"};
  const std::string lower = lower_case(text);
  return lower == "n" || std::find(kWords.begin(), kWords.end(), lower) != kWords.end();
}

/// Deliberately narrow: what is not obviously plain gets quotes.
bool is_safe_unquoted(std::string_view text) {
  if (is_reserved_word(text)) return false;
  const auto is_first = [](char c) { return is_letter(c) || c == '_' || c == '/'; };
  const auto is_next = [&](char c) { return is_first(c) || is_digit(c) || c == '.' || c == '-'; };
  return is_first(text[0]) && std::all_of(text.begin(), text.end(), is_next);
}

/// Control characters as the escapes of a double-quoted YAML scalar; with `quoting`, also what ends
/// such a scalar.
std::string escaped(std::string_view text, bool quoting) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (byte < 0x20 || byte == 0x7F) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      if (quoting && (c == '"' || c == '\\')) out += '\\';
      out += c;
    }
  }
  return out;
}

}  // namespace

NumberFault parse_integer(std::string_view text, int64_t& value) {
  return is_integer(text) ? convert(text, value) : NumberFault::kNotANumber;
}

NumberFault parse_decimal(std::string_view text, double& value) {
  return is_decimal(text) ? convert(text, value) : NumberFault::kNotANumber;
}

bool is_typed_scalar(std::string_view text) {
  const std::string lower = lower_case(text);
  return lower == "true" || lower == "false" || lower == "null" || text == "~" || is_decimal(text);
}

std::string yaml_text(std::string_view text) {
  return is_safe_unquoted(text) ? std::string(text) : '"' + escaped(text, true) + '"';
}

std::string shown(std::string_view text) {
  const bool is_long = text.size() > kMaxShown;
  return escaped(to_utf8(text.substr(0, kMaxShown)), false) + (is_long ? "..." : "");
}

}  // namespace lora::config
