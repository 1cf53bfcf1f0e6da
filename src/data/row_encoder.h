#pragma once

#include <optional>
#include <string>
#include <vector>

#include "formats/json.h"
#include "lora/data/chat_template.h"
#include "lora/data/dataset.h"

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
  /// Throws ConfigError for an unknown format, limits below 1, or a format that needs the missing
  /// tokenizer.
  RowEncoder(const DatasetOptions& options, const Tokenizer* tokenizer);

  EncodedRow encode(const formats::Json& row) const;

 private:
  EncodedRow encode_adgen(const formats::Json& row) const;
  EncodedRow encode_completion(const formats::Json& row) const;
  EncodedRow encode_alpaca(const formats::Json& row) const;
  EncodedRow encode_chat(const formats::Json& row) const;
  EncodedRow encode_tokens(const formats::Json& row) const;
  EncodedRow encode_conversation(const std::vector<Message>& messages) const;
  TextPair text_pair(const formats::Json& row, const char* prompt, const char* response) const;
  void cut_at_end(EncodedRow& row) const;
  void check_ids(const Example& example) const;

  DatasetOptions options_;
  const Tokenizer* tokenizer_;
  EncodedRow (RowEncoder::*encode_)(const formats::Json&) const;
};

/// Checks shared by every format. Throw DataError.
/// Text of the string at `key`, which must be there and hold more than white space.
std::string required_text(const formats::Json& row, const std::string& key);
/// Throws when any id is not in [0, vocab_size); 0: not checked.
void check_vocabulary(const std::vector<int32_t>& ids, int64_t vocab_size);

}  // namespace lora::data
