#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/path.h"
#include "lora/data/tokenizer.h"

namespace lora::data {

/// Name of the SentencePiece model in a ChatGLM-6B directory.
constexpr const char* kGlmTokenizerFile = "ice_text.model";

/// ChatGLM-6B's tokenizer: line ends, tabs and runs of spaces are pieces of their own (`<n>`, `<|tab|>`, `<|blank_2|>` to
/// `<|blank_80|>`), and ids begin after those of the image tokens. begin token `<sop>`, end token `<eop>`.
/// Source: tokenization_chatglm.py of ChatGLM-6B.
class GlmTokenizer : public Tokenizer {
 public:
  /// encode() as the text reads inside another one: without the space that SentencePiece puts in front.
  virtual std::vector<int64_t> encode_without_prefix(std::string_view text) const = 0;
  /// `prompt` [gMASK] <sop>: what an answer follows.
  virtual std::vector<int64_t> with_special_tokens(std::vector<int64_t> prompt) const = 0;
  /// `prompt` [gMASK] <sop> `answer` <eop>.
  virtual std::vector<int64_t> with_special_tokens(std::vector<int64_t> prompt, std::span<const int64_t> answer) const = 0;
};

/// Loads ice_text.model. Two layouts are read: that of files which hold special, tab, blank and byte pieces (published since
/// April 2023), and that of files which end with the text pieces, to which they are added here. The number of image tokens is
/// `num_image_tokens` of the tokenizer_config.json beside the file; without it, 0 in the first layout and 20000 in the second.
/// Throws IoError, and FormatError for a file or configuration of another tokenizer.
std::shared_ptr<const GlmTokenizer> load_glm_tokenizer(const Path& model_file);

/// True for a file named ice_text.model, and for one beside a tokenizer_config.json whose class is ChatGLMTokenizer.
bool is_glm_tokenizer(const Path& model_file);

/// Rows filled up on the left with `pad_id` to the length of the longest, as ChatGLM's tokenizer pads prompts.
std::vector<std::vector<int64_t>> pad_left(std::vector<std::vector<int64_t>> rows, int64_t pad_id);

}  // namespace lora::data
