#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/path.h"

namespace lora::data {

/// The tokens that a ChatGLM row is built with: `prompt` [gMASK] <sop> `answer` <eop>.
struct GlmIds {
  int64_t mask = -1, gmask = -1, sop = -1, eop = -1;
};

/// Text to token ids and back. Thread-safe after construction.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  /// Ids of `text` without begin or end tokens.
  virtual std::vector<int64_t> encode(std::string_view text) const = 0;
  /// Text of `ids`; control tokens give nothing. Throws DataError for an id outside the vocabulary.
  virtual std::string decode(std::span<const int64_t> ids) const = 0;
  /// The piece that stands for one id, control tokens included, for showing.
  virtual std::string piece(int64_t id) const = 0;
  virtual int64_t vocab_size() const = 0;
  /// -1 where the model has none.
  virtual int64_t bos_id() const = 0;
  virtual int64_t eos_id() const = 0;
  virtual int64_t pad_id() const = 0;
  /// Nothing for tokenizers of other models.
  virtual std::optional<GlmIds> glm_ids() const { return std::nullopt; }
  /// Digest of all that the ids of a text depend on; empty: not known, and tokens are not kept for later.
  virtual std::string fingerprint() const { return {}; }
};

/// Loads a SentencePiece model file (Llama's tokenizer.model). Throws IoError, FormatError; a
/// Hugging Face tokenizer.json is refused by name.
std::shared_ptr<const Tokenizer> load_sentencepiece(const Path& model_file);

/// Loads a tokenizer file of either kind: ChatGLM's where is_glm_tokenizer says so, else as load_sentencepiece.
std::shared_ptr<const Tokenizer> load_tokenizer(const Path& model_file);

/// ice_text.model or tokenizer.model in a model directory, or null when there is none.
std::shared_ptr<const Tokenizer> find_tokenizer(const Path& model_directory);

}  // namespace lora::data
