#include "lora/core/text.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <numeric>
#include <utility>

#include "core/check.h"

namespace lora {
namespace {

bool is_continuation(unsigned char byte) { return (byte & 0xC0u) == 0x80u; }

/// Levenshtein distance in bytes.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

// Source: The Unicode Standard, table 3-7.
size_t utf8_sequence_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if (!is_continuation(byte(i))) return 0;
  }
  const unsigned char second = byte(1);
  const bool overlong = (lead == 0xE0 && second < 0xA0) || (lead == 0xF0 && second < 0x90);
  const bool surrogate = lead == 0xED && second > 0x9F;
  const bool beyond_unicode = lead == 0xF4 && second > 0x8F;
  return overlong || surrogate || beyond_unicode ? 0 : length;
}

size_t find_invalid_utf8(std::string_view text) {
  size_t offset = 0;
  while (offset < text.size()) {
    const size_t length = utf8_sequence_length(text.substr(offset));
    if (length == 0) return offset;
    offset += length;
  }
  return offset;
}

bool is_utf8(std::string_view text) { return find_invalid_utf8(text) == text.size(); }

std::string to_utf8(std::string_view text) {
  constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const size_t good = find_invalid_utf8(text);
    result += text.substr(0, good);
    text.remove_prefix(good);
    if (text.empty()) break;
    result += kReplacement;
    text.remove_prefix(1);
  }
  return result;
}

std::string escape_control(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool control = (byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7F;
    if (control) {
      result += fmt::format("\\x{:02x}", byte);
    } else {
      result += c;
    }
  }
  return result;
}

std::vector<std::string> nearest_names(std::string_view name, std::span<const std::string> known, size_t count) {
  // A distance is known.size() * name.size() steps: nobody mistypes a name of more than this.
  name = name.substr(0, 200);
  std::vector<std::pair<size_t, std::string_view>> ranked;
  ranked.reserve(known.size());
  for (const std::string& candidate : known) {
    ranked.emplace_back(edit_distance(name, candidate), candidate);
  }
  std::ranges::stable_sort(ranked, {}, [](const auto& entry) { return entry.first; });
  ranked.resize(std::min(count, ranked.size()));
  std::vector<std::string> names;
  for (const auto& [distance, candidate] : ranked) names.emplace_back(candidate);
  return names;
}

std::string escape_html(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      case '\'':
        result += "&#39;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

std::string with_thousands(long long value) {
  std::string digits = fmt::format("{}", value);
  const size_t first_digit = value < 0 ? 1 : 0;
  for (size_t end = digits.size(); end > first_digit + 3;) {
    end -= 3;
    digits.insert(end, 1, ',');
  }
  return digits;
}

unsigned long long parse_bytes(std::string_view text, std::string_view where) {
  constexpr std::array<std::pair<std::string_view, unsigned long long>, 9> kUnits = {{{"KiB", 1ull << 10},
                                                                                      {"MiB", 1ull << 20},
                                                                                      {"GiB", 1ull << 30},
                                                                                      {"TiB", 1ull << 40},
                                                                                      {"KB", 1000ull},
                                                                                      {"MB", 1'000'000ull},
                                                                                      {"GB", 1'000'000'000ull},
                                                                                      {"TB", 1'000'000'000'000ull},
                                                                                      {"B", 1}}};
  std::string_view digits = text;
  unsigned long long unit = 1;
  for (const auto& [name, size] : kUnits) {
    if (!digits.ends_with(name)) continue;
    digits.remove_suffix(name.size());
    unit = size;
    break;
  }
  while (digits.ends_with(' ')) digits.remove_suffix(1);
  unsigned long long count = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), count);
  const bool is_number = error == std::errc() && end == digits.data() + digits.size();
  require<ConfigError>(is_number && count > 0 && count <= (1ull << 62) / unit,
                       "[{}] a size must be a whole number above 0 with B, KB, MB, GB, TB, KiB, "
                       "MiB, GiB or TiB; found \"{}\"",
                       where, text);
  return count * unit;
}

std::string human_bytes(unsigned long long bytes) {
  constexpr std::array kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  auto amount = static_cast<double>(bytes);
  size_t unit = 0;
  // From 1023.95 on, one decimal would print as 1024.0.
  while (amount >= 1023.95 && unit + 1 < kUnits.size()) {
    amount /= 1024;
    ++unit;
  }
  return fmt::format("{:.1f} {}", amount, kUnits[unit]);
}

}  // namespace lora
