#include "data/row_reader.h"

#include <fstream>
#include <optional>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "lora/core/file.h"
#include "lora/formats/jsonl.h"

namespace lora::data {
namespace {

constexpr uint64_t kMaxArrayBytes = 2'000'000'000;
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

bool is_blank(std::string_view line) {
  return line.find_first_not_of(" \t\r\n\v\f") == std::string_view::npos;
}

/// True when the first byte that is not white space opens an array.
bool holds_array(const Path& file) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error)) return false;  // the reader says why
  std::ifstream stream(file, std::ios::binary);
  for (char byte = 0; stream.get(byte);) {
    const bool skipped = is_blank({&byte, 1}) || kByteOrderMark.find(byte) != std::string::npos;
    if (!skipped) return byte == '[';
  }
  return false;
}

void read_array(const Path& file, const std::function<void(const RawRow&)>& use) {
  const std::string name = file.string();
  const std::string text = read_file(file, kMaxArrayBytes);
  std::string_view json = text;
  if (json.starts_with(kByteOrderMark)) json.remove_prefix(kByteOrderMark.size());
  formats::Json rows = formats::parse_json(json, name, {.max_bytes = kMaxArrayBytes});
  int64_t number = 0;
  for (formats::Json& row : rows) {
    ++number;
    use({.number = number, .where = fmt::format("{}, element {}", name, number), .parse = [&row] {
           return std::move(row);
         }});
  }
}

void read_lines(const Path& file, const std::function<void(const RawRow&)>& use) {
  formats::LineReader lines(file);
  while (const auto line = lines.next()) {
    if (is_blank(*line)) continue;
    const std::string where = fmt::format("{}:{}", file.string(), lines.line_number());
    use({.number = lines.line_number(), .where = where, .parse = [&] {
           return formats::parse_json(*line, where);
         }});
  }
}

}  // namespace

void for_each_row(const Path& file, const std::function<void(const RawRow&)>& use) {
  if (holds_array(file)) {
    read_array(file, use);
  } else {
    read_lines(file, use);
  }
}

}  // namespace lora::data
