#include "lora/data/supervision.h"

#include <algorithm>
#include <span>

#include "core/check.h"

namespace lora::data {
namespace {

constexpr size_t kShownTokens = 60;  // of each part, half from its beginning and half from its end

bool is_special(const Tokenizer& tokenizer, int64_t id) {
  return id == tokenizer.bos_id() || id == tokenizer.eos_id() || id == tokenizer.pad_id();
}

std::string on_one_line(const std::string& text) {
  std::string line;
  for (const char byte : text) {
    if (byte == '\n') {
      line += "\\n";
    } else if (byte == '\r') {
      line += "\\r";
    } else if (byte == '\t') {
      line += "\\t";
    } else {
      line += byte;
    }
  }
  return line;
}

/// Words of a run of tokens; special tokens stand between them under their own names.
std::vector<std::string> words_of(std::span<const int32_t> ids, const Tokenizer* tokenizer) {
  std::vector<std::string> words;
  if (tokenizer == nullptr) {
    for (const int32_t id : ids) words.push_back(fmt::format("{}", id));
    return words;
  }
  std::vector<int64_t> plain;
  const auto flush = [&] {
    if (!plain.empty()) words.push_back(on_one_line(tokenizer->decode(plain)));
    plain.clear();
  };
  for (const int32_t id : ids) {
    if (is_special(*tokenizer, id)) {
      flush();
      words.push_back(tokenizer->piece(id));
    } else {
      plain.push_back(id);
    }
  }
  flush();
  return words;
}

std::string render_part(std::span<const int32_t> ids, const Tokenizer* tokenizer) {
  std::vector<std::string> words;
  if (ids.size() <= kShownTokens) {
    words = words_of(ids, tokenizer);
  } else {
    words = words_of(ids.first(kShownTokens / 2), tokenizer);
    words.push_back(fmt::format("... {} more ...", ids.size() - kShownTokens));
    const auto end = words_of(ids.last(kShownTokens / 2), tokenizer);
    words.insert(words.end(), end.begin(), end.end());
  }
  return fmt::format("{}", fmt::join(words, " "));
}

/// Label `i` as the loss sees it: the first of a row has no prediction.
bool is_target(const Example& example, size_t i) { return i > 0 && example.labels[i] != kIgnoreLabel; }

std::string render(const Example& example, const Tokenizer* tokenizer) {
  const std::span<const int32_t> ids = example.input_ids;
  std::string text;
  size_t begin = 0;
  while (begin < ids.size()) {
    const bool target = is_target(example, begin);
    size_t end = begin + 1;
    while (end < ids.size() && is_target(example, end) == target) ++end;
    text += fmt::format("{}[{}] {}", begin == 0 ? "" : " ", target ? "target" : "masked",
                        render_part(ids.subspan(begin, end - begin), tokenizer));
    begin = end;
  }
  return text;
}

bool teaches(const Example& example, int64_t id) {
  return !example.labels.empty() && std::find(example.labels.begin() + 1, example.labels.end(), id) != example.labels.end();
}

}  // namespace

SupervisionReport check_supervision(const RowSource& rows, const Tokenizer* tokenizer, int64_t end_id) {
  SupervisionReport report;
  Example example, shown;
  for (int64_t row = 0; row < rows.size(); ++row) {
    rows.read(row, example);
    const int64_t num_targets = example.num_targets();
    const bool is_first_with_targets = report.num_targets == 0 && num_targets > 0;
    if (row == 0 || is_first_with_targets) shown = example;
    ++report.num_rows;
    report.num_tokens += static_cast<int64_t>(example.input_ids.size());
    report.num_targets += num_targets;
    report.rows_without_targets += num_targets == 0;
    report.rows_with_end_token += end_id >= 0 && teaches(example, end_id);
  }
  report.shown = render(shown, tokenizer);
  return report;
}

}  // namespace lora::data
