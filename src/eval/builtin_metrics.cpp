#include "eval/builtin_metrics.h"

#include <string_view>
#include <vector>

#include "eval/characters.h"
#include "lora/eval/bleu.h"
#include "lora/eval/rouge.h"

namespace lora::eval {
namespace {

bool is_white(std::string_view token) {
  while (!token.empty()) {
    const auto [character, num_bytes] = first_character(token);
    if (!is_space(character)) return false;
    token.remove_prefix(num_bytes);
  }
  return true;
}

/// Tokens as rouge_chinese finds them again in a text that they were joined to by spaces.
std::vector<std::string_view> tokens_of(const Segmenter& segmenter, std::string_view text) {
  std::vector<std::string_view> tokens = segmenter.cut(text);
  std::erase_if(tokens, is_white);
  return tokens;
}

std::vector<double> rouge_of_row(const Segmenter& segmenter, std::string_view prediction, std::string_view reference) {
  const RougeScores scores = rouge(tokens_of(segmenter, prediction), tokens_of(segmenter, reference));
  return {scores.rouge_1.f, scores.rouge_2.f, scores.rouge_l.f};
}

}  // namespace

std::unique_ptr<Metric> make_rouge(const MetricOptions& options) {
  return mean_of_rows({"rouge-1", "rouge-2", "rouge-l"}, [segmenter = options.segmenter](auto prediction, auto reference) {
    return rouge_of_row(*segmenter, prediction, reference);
  });
}

std::unique_ptr<Metric> make_bleu4(const MetricOptions&) {
  return mean_of_rows({"bleu-4"},
                      [](auto prediction, auto reference) { return std::vector<double>{bleu4(prediction, reference)}; });
}

std::unique_ptr<Metric> make_exact_match(const MetricOptions&) {
  return mean_of_rows({"exact-match"},
                      [](auto prediction, auto reference) { return std::vector<double>{prediction == reference ? 1.0 : 0.0}; });
}

}  // namespace lora::eval
