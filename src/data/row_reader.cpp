#include "data/row_reader.h"

#include <fstream>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "lora/core/file.h"
#include "lora/formats/jsonl.h"

namespace lora::data {
namespace {

constexpr uint64_t kMaxArrayBytes = 2'000'000'000;
constexpr size_t kMaxBatchBytes = 16u << 20;
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

bool is_blank(std::string_view line) { return line.find_first_not_of(" \t\r\n\v\f") == std::string_view::npos; }

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

formats::Json read_array(const Path& file) {
  const std::string text = read_file(file, kMaxArrayBytes);
  std::string_view json = text;
  if (json.starts_with(kByteOrderMark)) json.remove_prefix(kByteOrderMark.size());
  return formats::parse_json(json, file.string(), {.max_bytes = kMaxArrayBytes});
}

}  // namespace

bool is_json_file(const Path& file) {
  const std::string extension = file.extension().string();
  return extension == ".json" || extension == ".jsonl";
}

RowReader::RowReader(const Path& file) : name_(file.string()) {
  if (holds_array(file)) {
    array_ = read_array(file);
  } else {
    lines_.emplace(file);
  }
}

std::vector<RawRow> RowReader::next(size_t count) {
  std::vector<RawRow> rows;
  rows.reserve(count);
  if (!lines_) {
    for (; rows.size() < count && next_element_ < array_.size(); ++next_element_) {
      rows.push_back({.number = static_cast<int64_t>(next_element_) + 1, .line = {}, .json = std::move(array_[next_element_])});
    }
    return rows;
  }
  size_t bytes = 0;
  while (rows.size() < count && bytes < kMaxBatchBytes) {
    auto line = lines_->next();
    if (!line) break;
    if (is_blank(*line)) continue;
    bytes += line->size();
    rows.push_back({.number = lines_->line_number(), .line = *std::move(line), .json = {}});
  }
  return rows;
}

std::string RowReader::where(const RawRow& row) const {
  return lines_ ? fmt::format("{}:{}", name_, row.number) : fmt::format("{}, element {}", name_, row.number);
}

formats::Json RowReader::parse(RawRow& row) const {
  return lines_ ? formats::parse_json(row.line, where(row)) : std::move(row.json);
}

}  // namespace lora::data
