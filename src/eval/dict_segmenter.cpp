#include "lora/eval/dict_segmenter.h"

#include <limits>
#include <string>

#include "eval/characters.h"
#include "eval/dictionary_file.h"
#include "eval/prefix_dictionary.h"

namespace lora::eval {
namespace {

using Tokens = std::vector<std::string_view>;

bool is_letter_or_digit(char32_t c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'); }

/// What jieba looks up in the dictionary, its re_han_default; the rest is cut character by
/// character.
bool is_looked_up(char32_t c) {
  constexpr std::u32string_view kSigns = U"+#&._%-";
  return (c >= 0x4E00 && c <= 0x9FD5) || is_letter_or_digit(c) || kSigns.find(c) != kSigns.npos;
}

/// Bytes at the start of `text` that are looked up together.
size_t block_bytes(std::string_view text) {
  size_t size = 0;
  while (size < text.size()) {
    const auto [character, num_bytes] = first_character(text.substr(size));
    if (!is_looked_up(character)) break;
    size += num_bytes;
  }
  return size;
}

/// From one position to the end of the block: the best sum of log-probabilities and where its first
/// word ends.
struct Step {
  double log_probability = 0;
  uint32_t end = 0;
};

/// By position, and one for the end. Of equally probable paths the one with the longer first word
/// is taken.
std::vector<Step> best_paths(const PrefixDictionary& dictionary, std::u32string_view block) {
  std::vector<Step> steps(block.size() + 1);
  for (auto begin = static_cast<uint32_t>(block.size()); begin-- > 0;) {
    Step best = {-std::numeric_limits<double>::infinity(), 0};
    PrefixDictionary::Node node = PrefixDictionary::kRoot;
    for (uint32_t end = begin; end < block.size();) {
      node = dictionary.child(node, block[end++]);
      if (node == PrefixDictionary::kNone) break;
      if (!dictionary.is_word(node)) continue;
      const double sum = dictionary.log_probability(node) + steps[end].log_probability;
      if (sum >= best.log_probability) best = {sum, end};
    }
    const bool is_unknown = best.end == 0;
    steps[begin] = is_unknown ? Step{dictionary.unknown_log_probability() + steps[begin + 1].log_probability, begin + 1} : best;
  }
  return steps;
}

/// Bytes of a character that is looked up.
size_t bytes_of(char32_t c) { return c < 0x80 ? 1 : 3; }

/// Words of the best path; letters and digits that are words of one character are joined with such
/// neighbours.
void cut_block(const PrefixDictionary& dictionary, std::string_view text, Tokens& tokens) {
  const std::u32string block = characters_of(text);
  const std::vector<Step> steps = best_paths(dictionary, block);
  bool joins = false;  // the last token is made of single letters and digits
  for (uint32_t begin = 0; begin < block.size();) {
    const uint32_t end = steps[begin].end;
    const bool is_single = end - begin == 1 && is_letter_or_digit(block[begin]);
    size_t num_bytes = 0;
    for (; begin < end; ++begin) num_bytes += bytes_of(block[begin]);
    if (joins && is_single) {
      tokens.back() = {tokens.back().data(), tokens.back().size() + num_bytes};
    } else {
      tokens.push_back(text.substr(0, num_bytes));
    }
    text.remove_prefix(num_bytes);
    joins = is_single;
  }
}

}  // namespace

DictSegmenter::DictSegmenter(const Path& dictionary)
    : dictionary_(std::make_unique<PrefixDictionary>(read_dictionary(dictionary))) {}

DictSegmenter::~DictSegmenter() = default;

Tokens DictSegmenter::cut(std::string_view text) const {
  require_scorable_size(text, "segmenter dict");
  Tokens tokens;
  while (!text.empty()) {
    size_t num_bytes = block_bytes(text);
    if (num_bytes > 0) {
      cut_block(*dictionary_, text.substr(0, num_bytes), tokens);
    } else {
      num_bytes = text.starts_with("\r\n") ? 2 : first_character(text).num_bytes;
      tokens.push_back(text.substr(0, num_bytes));
    }
    text.remove_prefix(num_bytes);
  }
  return tokens;
}

}  // namespace lora::eval
