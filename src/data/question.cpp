#include "lora/data/question.h"

#include <algorithm>

#include "lora/core/text.h"

namespace lora::data {
namespace {

bool is_target(int32_t label) { return label != kIgnoreLabel; }

std::optional<int64_t> start_of(const Tokenizer& tokenizer) {
  const auto glm = tokenizer.glm_ids();
  return glm ? std::optional(glm->sop) : std::nullopt;
}

}  // namespace

size_t last_answer(const Example& example, std::optional<int64_t> start) {
  const auto& labels = example.labels;
  const auto end = std::find_if(labels.rbegin(), labels.rend(), is_target);
  if (end == labels.rend()) return labels.size();
  const auto begin = static_cast<size_t>(labels.rend() - std::find_if_not(end, labels.rend(), is_target));
  return begin + (start == example.input_ids[begin] ? 1 : 0);
}

std::vector<int64_t> question_ids(const Example& example, std::optional<int64_t> start) {
  const auto answer = static_cast<std::ptrdiff_t>(last_answer(example, start));
  return {example.input_ids.begin(), example.input_ids.begin() + answer};
}

TextPair text_of(const Example& example, const Tokenizer& tokenizer) {
  const size_t answer = last_answer(example, start_of(tokenizer));
  const auto text = [&](size_t begin, size_t end) {
    std::vector<int64_t> ids;
    for (size_t i = begin; i < end; ++i) {
      const bool is_piece = example.input_ids[i] >= 0 && example.input_ids[i] < tokenizer.vocab_size();
      if (is_piece && (i < answer || is_target(example.labels[i]))) ids.push_back(example.input_ids[i]);
    }
    return to_utf8(tokenizer.decode(ids));
  };
  return {.prompt = text(0, answer), .response = text(answer, example.input_ids.size())};
}

}  // namespace lora::data
