// A SentencePiece model as the tokenizers use it.
#pragma once

#include <sentencepiece_processor.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/path.h"

namespace lora::data {

/// Bytes of a SentencePiece model file. Throws IoError, and FormatError for JSON, which has another place.
std::string read_pieces_file(const Path& file);

/// Pieces by number, without the offset that a tokenizer may put on them. Thread-safe after construction.
class Pieces {
 public:
  /// Throws FormatError; `where` opens messages.
  Pieces(std::string_view model, std::string where);

  std::vector<int64_t> encode(std::string_view text) const;
  /// Control pieces give nothing. Throws DataError for a number outside the model.
  std::string decode(std::span<const int64_t> ids) const;
  std::string piece(int64_t id) const;
  int64_t size() const { return processor_.GetPieceSize(); }
  /// Nothing when there is no such piece.
  std::optional<int64_t> find(std::string_view piece) const;
  const sentencepiece::SentencePieceProcessor& processor() const { return processor_; }
  const std::string& where() const { return where_; }

 private:
  int check(int64_t id) const;

  std::string where_;
  sentencepiece::SentencePieceProcessor processor_;
};

}  // namespace lora::data
