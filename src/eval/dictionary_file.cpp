#include "eval/dictionary_file.h"

#include <algorithm>
#include <charconv>
#include <system_error>

#include "core/check.h"
#include "eval/characters.h"
#include "lora/core/text.h"
#include "lora/formats/jsonl.h"

namespace lora::eval {
namespace {

constexpr size_t kMaxFileBytes = 32u << 20;
constexpr size_t kMaxLineBytes = 4096;
constexpr size_t kMaxWordCharacters = 64;
constexpr uint64_t kMaxFrequency = 1'000'000'000'000'000;
constexpr uint64_t kMaxTotal = 1ull << 53;  // what a double holds without loss

/// Python's bytes.strip().
std::string_view without_outer_space(std::string_view line) {
  constexpr std::string_view kSpaces = " \t\n\v\f\r";
  const size_t begin = line.find_first_not_of(kSpaces);
  if (begin == std::string_view::npos) return {};
  return line.substr(begin, line.find_last_not_of(kSpaces) - begin + 1);
}

/// One line's fields, checked. `where` is file and line.
class LineParser {
 public:
  LineParser(std::string_view line, std::string_view where) : line_(line), where_(where) {
    require<FormatError>(is_utf8(line), "[{}] a dictionary must be UTF-8; byte {} of the line is not; save it as UTF-8", where,
                         find_invalid_utf8(line));
  }

  std::u32string word() const {
    std::u32string word = characters_of(line_.substr(0, line_.find(' ')));
    require<FormatError>(word.size() <= kMaxWordCharacters,
                         "[{}] a word must have at most {} characters; found {}; is it a dictionary?", where_, kMaxWordCharacters,
                         word.size());
    const auto is_control = [](char32_t c) { return c < 0x20 || c == 0x7F; };
    require<FormatError>(std::ranges::none_of(word, is_control),
                         "[{}] a word must have no control characters; found {}; put one space "
                         "between word, frequency "
                         "and tag",
                         where_, shown());
    return word;
  }

  uint64_t frequency() const {
    const size_t space = line_.find(' ');
    const std::string_view rest = space == std::string_view::npos ? "" : line_.substr(space + 1);
    const std::string_view digits = rest.substr(0, rest.find(' '));
    uint64_t frequency = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), frequency);
    require<FormatError>(error == std::errc() && end == digits.data() + digits.size() && frequency <= kMaxFrequency,
                         "[{}] a line must be a word, one space and a whole frequency from 0 to {}; found {}; "
                         "correct "
                         "the line",
                         where_, kMaxFrequency, shown());
    return frequency;
  }

 private:
  std::string shown() const {
    constexpr size_t kMaxShown = 60;
    const bool is_long = line_.size() > kMaxShown;
    return fmt::format("\"{}{}\"", to_utf8(escape_control(line_.substr(0, kMaxShown))), is_long ? "..." : "");
  }

  std::string_view line_, where_;
};

}  // namespace

void WordList::add(std::u32string_view word, uint64_t frequency) {
  words_.push_back({static_cast<uint32_t>(characters_.size()), static_cast<uint32_t>(word.size()), frequency});
  characters_ += word;
  total_ += frequency;
}

WordList read_dictionary(const Path& path) {
  formats::LineReader lines(path, kMaxLineBytes);
  WordList words;
  size_t num_bytes = 0;
  while (const auto line = lines.next()) {
    num_bytes += line->size() + 1;
    const std::string where = fmt::format("{}:{}", path.string(), lines.line_number());
    require<FormatError>(num_bytes <= kMaxFileBytes,
                         "[{}] a dictionary must have at most {} bytes; found more; leave out rare words", where, kMaxFileBytes);
    const std::string_view content = without_outer_space(*line);
    if (content.empty()) continue;
    const LineParser parser(content, where);
    words.add(parser.word(), parser.frequency());
    require<FormatError>(words.total() <= kMaxTotal,
                         "[{}] the frequencies must sum to at most 2^53; found more; divide them all by one number", where);
  }
  require<FormatError>(words.total() > 0,
                       "[{}] a dictionary must have a word with a frequency above 0; found none; put a word and its "
                       "frequency on each line",
                       path.string());
  return words;
}

}  // namespace lora::eval
