#include "lora/formats/jsonl.h"

#include <cerrno>
#include <system_error>

#include "core/check.h"

namespace lora::formats {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

[[noreturn]] void fail_reading(const Path& path, int error) {
  fail<IoError>("[{}] must be readable; the system says: {}; check the path and its permissions",
                path.string(), std::generic_category().message(error));
}

}  // namespace

LineReader::LineReader(const Path& path, size_t max_line_bytes)
    : path_(path),
      max_line_bytes_(max_line_bytes),
      file_(std::fopen(path.c_str(), "rbe"), std::fclose) {
  if (!file_) fail_reading(path_, errno);
}

std::optional<std::string> LineReader::next() {
  std::string line;
  int c = std::getc(file_.get());
  bool found = c != EOF;
  for (; c != EOF && c != '\n'; c = std::getc(file_.get())) {
    require<FormatError>(line.size() < max_line_bytes_,
                         "[{}:{}] a line must have at most {} bytes; found a longer one; is it a "
                         "file with one entry per line?",
                         path_.string(), line_number_ + 1, max_line_bytes_);
    line.push_back(static_cast<char>(c));
  }
  if (std::ferror(file_.get()) != 0) fail_reading(path_, errno);
  if (line_number_ == 0 && line.starts_with(kByteOrderMark)) {
    line.erase(0, kByteOrderMark.size());
    found = !line.empty() || c == '\n';
  }
  if (!found) return std::nullopt;
  if (c == '\n' && line.ends_with('\r')) line.pop_back();
  ++line_number_;
  return line;
}

}  // namespace lora::formats
