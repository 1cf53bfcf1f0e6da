#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lora/core/path.h"

namespace lora::data {

/// A tokenizer.model with new tokens, and what they were before.
struct ExtendedTokenizer {
  std::string model;     ///< the new file's bytes
  int64_t first_id = 0;  ///< of the first new token: how many pieces there were
  std::vector<std::string> tokens;
  std::vector<std::vector<int64_t>> old_pieces;  ///< the ids that each token had in the middle of a text
  int64_t vocab_size() const { return first_id + static_cast<int64_t>(tokens.size()); }
};

/// One token per line; blank lines are left out. Throws IoError, and DataError with the line for text that is not UTF-8, a token
/// of more than 256 bytes, one that comes twice, one with a space, a control character or SentencePiece's mark for spaces (the
/// tokenizer here and that of transformers would find it in different places), and for a file without tokens.
std::vector<std::string> read_new_tokens(const Path& file);

/// The SentencePiece model with the tokens as user-defined pieces: text that holds one has its id there, all other text the ids
/// that it had. Both are checked, the latter by the text of every piece. Throws IoError, FormatError (no such model), DataError
/// for a token that is a piece already.
ExtendedTokenizer extend_tokenizer(const Path& model_file, const std::vector<std::string>& tokens);

}  // namespace lora::data
