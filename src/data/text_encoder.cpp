#include "data/text_encoder.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <optional>

namespace lora::data {
namespace {

constexpr size_t kWindowBytes = 64;
constexpr int kMaxTries = 64;

bool continues_character(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) == 0x80; }

void append(std::vector<int64_t>& ids, const std::vector<int64_t>& more) { ids.insert(ids.end(), more.begin(), more.end()); }

/// Ids of a segment as they stand inside a text, after whatever comes before it.
class SegmentEncoder {
 public:
  explicit SegmentEncoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
    // A line end alone shows the token that the tokenizer puts in front of every text, if any.
    const std::vector<int64_t> line_end = tokenizer.encode("\n");
    if (line_end.size() > 1) leading_id_ = line_end.front();
  }

  /// `segment` starts with a space or a line end.
  std::vector<int64_t> encode_inner(std::string_view segment) const {
    if (segment.front() == ' ') return tokenizer_.encode(segment.substr(1));
    std::vector<int64_t> ids = tokenizer_.encode(segment);
    if (leading_id_ && !ids.empty() && ids.front() == *leading_id_) ids.erase(ids.begin());
    return ids;
  }

  /// True when cutting `text` at `at` leaves the ids around it as they are.
  bool cuts_cleanly(std::string_view text, size_t at) const {
    size_t begin = at - std::min(at, kWindowBytes);
    while (begin < at && continues_character(text[begin])) ++begin;
    size_t end = std::min(at + kWindowBytes, text.size());
    while (end < text.size() && continues_character(text[end])) ++end;

    const std::string_view left = text.substr(begin, at - begin);
    const std::string_view right = text.substr(at, end - at);
    std::vector<int64_t> parts = tokenizer_.encode(left);
    append(parts, encode_inner(right));
    return parts == tokenizer_.encode(text.substr(begin, end - begin));
  }

 private:
  const Tokenizer& tokenizer_;
  std::optional<int64_t> leading_id_;
};

/// A place at or after `from` where the text can be cut.
std::optional<size_t> find_cut(const SegmentEncoder& encoder, std::string_view text, size_t from) {
  size_t at = text.find_first_of(" \n", from);
  for (int tries = 0; at != std::string_view::npos && tries < kMaxTries; ++tries) {
    if (encoder.cuts_cleanly(text, at)) return at;
    at = text.find_first_of(" \n", at + 1);
  }
  return std::nullopt;
}

/// The text in parts that can be encoded each by itself.
std::vector<std::string_view> segments_of(const SegmentEncoder& encoder, std::string_view text, size_t segment_bytes) {
  std::vector<std::string_view> segments;
  while (text.size() > segment_bytes) {
    const auto cut = find_cut(encoder, text, segment_bytes);
    if (!cut) break;
    segments.push_back(text.substr(0, *cut));
    text.remove_prefix(*cut);
  }
  if (!text.empty()) segments.push_back(text);
  return segments;
}

}  // namespace

std::vector<int64_t> encode_long_text(const Tokenizer& tokenizer, std::string_view text, size_t segment_bytes) {
  if (text.size() <= segment_bytes) return tokenizer.encode(text);
  // No segment may be shorter than what is looked at around a cut.
  segment_bytes = std::max(segment_bytes, kWindowBytes);
  const SegmentEncoder encoder(tokenizer);
  const auto segments = segments_of(encoder, text, segment_bytes);
  std::vector<std::vector<int64_t>> parts(segments.size());
  at::parallel_for(0, static_cast<int64_t>(segments.size()), 1, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const auto place = static_cast<size_t>(i);
      parts[place] = i == 0 ? tokenizer.encode(segments[place]) : encoder.encode_inner(segments[place]);
    }
  });
  std::vector<int64_t> ids;
  for (const auto& part : parts) append(ids, part);
  return ids;
}

}  // namespace lora::data
