#pragma once

#include <optional>
#include <string>
#include <vector>

#include "formats/json.h"
#include "lora/data/chat_template.h"
#include "lora/data/dataset.h"
#include "lora/data/format_registry.h"

namespace lora::data {

/// A row as tokens, and what is worth remembering of it.
struct EncodedRow {
  Example example;
  bool truncated = false;
  std::optional<TextPair> text;  ///< nothing for token rows
};

/// Turns rows of one format into tokens. Throws DataError, saying what is wrong with the row; the
/// caller says which row it was.
class RowEncoder {
 public:
  /// `tokenizer` may be null for format tokens only. Throws ConfigError for an unknown format.
  RowEncoder(const DatasetOptions& options, const Tokenizer* tokenizer);

  EncodedRow encode(const formats::Json& row) const;

 private:
  EncodedRow adgen_row(const formats::Json& row) const;
  EncodedRow glm_adgen_row(const formats::Json& row) const;
  EncodedRow completion_row(const formats::Json& row) const;
  EncodedRow alpaca_row(const formats::Json& row) const;
  EncodedRow chat_row(const formats::Json& row) const;
  EncodedRow token_row(const formats::Json& row) const;
  EncodedRow registered_row(const formats::Json& row) const;
  EncodedRow completion_of(TextPair text) const;
  EncodedRow conversation_of(std::vector<Message> messages) const;
  EncodedRow tokens_of(Example example) const;
  TextPair text_pair(const formats::Json& row, const char* prompt, const char* response) const;
  void cut_at_end(EncodedRow& row) const;

  DatasetOptions options_;
  const Tokenizer* tokenizer_;
  std::optional<GlmIds> glm_;               ///< nothing: another model's tokenizer
  formats::PromptTemplate template_;        ///< of conversations
  const DataFormat* registered_ = nullptr;  ///< null: a format of the library
  EncodedRow (RowEncoder::*encode_)(const formats::Json&) const;
};

/// Throws DataError when an id is not in [0, vocab_size); 0: only negative ids are refused.
void check_vocabulary(const std::vector<int32_t>& ids, int64_t vocab_size);

}  // namespace lora::data
