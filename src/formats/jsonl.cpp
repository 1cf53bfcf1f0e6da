#include "lora/formats/jsonl.h"

#include <cerrno>
#include <system_error>

#include "core/check.h"

namespace lora::formats {
namespace {

constexpr size_t kBlockBytes = 256u << 10;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

[[noreturn]] void fail_reading(const Path& path, int error) {
  fail<IoError>("[{}] must be readable; the system says: {}; check the path and its permissions", path.string(),
                std::generic_category().message(error));
}

}  // namespace

LineReader::LineReader(const Path& path, size_t max_line_bytes)
    : path_(path), max_line_bytes_(max_line_bytes), file_(std::fopen(path.c_str(), "rbe"), std::fclose), block_(kBlockBytes) {
  if (!file_) fail_reading(path_, errno);
}

bool LineReader::read_block() {
  const size_t count = std::fread(block_.data(), 1, block_.size(), file_.get());
  if (count == 0 && std::ferror(file_.get()) != 0) fail_reading(path_, errno);
  rest_ = {block_.data(), count};
  return count > 0;
}

std::optional<std::string> LineReader::next() {
  std::string line;
  bool found = false, ended = false;
  while (!ended && (!rest_.empty() || read_block())) {
    found = true;
    const size_t end = rest_.find('\n');
    ended = end != std::string_view::npos;
    const std::string_view part = rest_.substr(0, end);
    require<FormatError>(part.size() <= max_line_bytes_ - line.size(),
                         "[{}:{}] a line must have at most {} bytes; found a longer one; is it a "
                         "file with one entry per line?",
                         path_.string(), line_number_ + 1, max_line_bytes_);
    line.append(part);
    rest_.remove_prefix(ended ? end + 1 : rest_.size());
  }
  if (line_number_ == 0 && line.starts_with(kByteOrderMark)) {
    line.erase(0, kByteOrderMark.size());
    found = !line.empty() || ended;
  }
  if (!found) return std::nullopt;
  if (ended && line.ends_with('\r')) line.pop_back();
  ++line_number_;
  return line;
}

}  // namespace lora::formats
