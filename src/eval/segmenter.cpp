#include "lora/eval/segmenter.h"

#include <array>
#include <string>

#include "core/check.h"
#include "eval/characters.h"
#include "lora/eval/dict_segmenter.h"

namespace lora::eval {

std::vector<std::string_view> CharSegmenter::cut(std::string_view text) const {
  require_scorable_size(text, "segmenter char");
  std::vector<std::string_view> tokens;
  while (!text.empty()) {
    const auto [character, num_bytes] = first_character(text);
    if (!is_space(character)) tokens.push_back(text.substr(0, num_bytes));
    text.remove_prefix(num_bytes);
  }
  return tokens;
}

std::vector<std::string_view> WhitespaceSegmenter::cut(std::string_view text) const {
  require_scorable_size(text, "segmenter whitespace");
  std::vector<std::string_view> tokens;
  size_t begin = 0;  // of the token that is being read
  const auto end_token = [&](size_t end) {
    if (end > begin) tokens.push_back(text.substr(begin, end - begin));
  };
  for (size_t offset = 0; offset < text.size();) {
    const auto [character, num_bytes] = first_character(text.substr(offset));
    if (is_space(character)) {
      end_token(offset);
      begin = offset + num_bytes;
    }
    offset += num_bytes;
  }
  end_token(text.size());
  return tokens;
}

std::unique_ptr<Segmenter> make_segmenter(std::string_view name, const Path& dictionary) {
  static const std::array<std::string, 3> kNames = {"char", "whitespace", "dict"};
  const bool has_dictionary = !dictionary.empty();
  if (name == "dict") {
    require<ConfigError>(has_dictionary,
                         "[segmenter] dict must have a dictionary; found none; name a file with a word and its "
                         "frequency on each line");
    return std::make_unique<DictSegmenter>(dictionary);
  }
  require<ConfigError>(name == "char" || name == "whitespace", "[segmenter] must be one of {}; found \"{}\"; did you mean {}?",
                       fmt::join(kNames, ", "), name, nearest_names(name, kNames, 1).front());
  require<ConfigError>(!has_dictionary, "[segmenter] {} must have no dictionary; found {}; did you mean dict?", name,
                       dictionary.string());
  if (name == "char") return std::make_unique<CharSegmenter>();
  return std::make_unique<WhitespaceSegmenter>();
}

}  // namespace lora::eval
