#include "lora/data/glm_adgen.h"

#include <algorithm>
#include <string_view>

#include "core/check.h"
#include "lora/data/dataset.h"

namespace lora::data {
namespace {

void check_limits(int64_t max_source_length, int64_t max_target_length) {
  require<ConfigError>(
      max_source_length >= 2 && max_target_length >= 3,
      "[data] max_source_length must have room for [gMASK] and a token, max_target_length for <sop>, a token and "
      "<eop>; found {} and {}; make them at least 2 and 3",
      max_source_length, max_target_length);
}

/// The first `limit` characters of UTF-8 text.
std::string_view first_characters(std::string_view text, int64_t limit) {
  size_t end = 0;
  for (; end < text.size(); ++end) {
    const bool begins_character = (static_cast<unsigned char>(text[end]) & 0xc0) != 0x80;
    if (begins_character && limit-- == 0) break;
  }
  return text.substr(0, end);
}

std::vector<int64_t> cut(std::vector<int64_t> ids, int64_t limit) {
  if (static_cast<int64_t>(ids.size()) > limit) ids.resize(static_cast<size_t>(limit));
  return ids;
}

}  // namespace

GlmAdgenRow encode_glm_adgen(const TextPair& text, const Tokenizer& tokenizer, const GlmAdgenOptions& options) {
  check_limits(options.max_source_length, options.max_target_length);
  const auto [mask, gmask, sop, eop] = tokenizer.glm_ids().value();
  const std::vector<int64_t> prompt = tokenizer.encode(text.prompt), answer = tokenizer.encode(text.response);

  std::vector<int64_t> ids = cut(prompt, options.prompt_limit());
  ids.insert(ids.end(), {gmask, sop});
  const size_t answer_begin = ids.size();
  for (const int64_t id : cut(answer, options.answer_limit())) ids.push_back(id);
  ids.push_back(eop);
  const int64_t pad = tokenizer.pad_id();
  if (!options.ignore_pad_in_loss) ids.resize(static_cast<size_t>(options.max_source_length + options.max_target_length), pad);

  GlmAdgenRow row{.example = {}, .prompt_tokens = prompt.size(), .answer_tokens = answer.size()};
  row.example.input_ids.assign(ids.begin(), ids.end());
  row.example.labels.assign(ids.size(), kIgnoreLabel);
  for (size_t i = answer_begin - (options.train_on_sop ? 1 : 0); i < ids.size(); ++i) {
    if (options.ignore_pad_in_loss && ids[i] == pad) continue;
    row.example.labels[i] = row.example.input_ids[i];
  }
  return row;
}

GlmEvalRow encode_glm_adgen_eval(const TextPair& text, const Tokenizer& tokenizer, int64_t max_source_length,
                                 int64_t max_target_length) {
  check_limits(max_source_length, max_target_length);
  GlmEvalRow row{.input_ids = encode_prompt(tokenizer, first_characters(text.prompt, max_source_length - 2)),
                 .reference_ids = encode_prompt(tokenizer, first_characters(text.response, max_target_length - 2))};
  const auto length = static_cast<size_t>(max_source_length);
  if (row.input_ids.size() < length) row.input_ids.resize(length, tokenizer.pad_id());
  return row;
}

}  // namespace lora::data
