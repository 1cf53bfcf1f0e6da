#include "data/pieces.h"

#include <exception>
#include <utility>

#include "core/check.h"
#include "data/charsmap.h"
#include "lora/core/file.h"

namespace lora::data {
namespace {

constexpr uint64_t kMaxModelBytes = 64u << 20;

bool looks_like_json(std::string_view bytes) {
  const size_t first = bytes.find_first_not_of(" \t\r\n");
  return first != std::string_view::npos && bytes[first] == '{';
}

}  // namespace

std::string read_pieces_file(const Path& file) {
  std::string model = read_file(file, kMaxModelBytes);
  require<FormatError>(!looks_like_json(model),
                       "[{}] must be a SentencePiece model; found JSON, as in a Hugging Face "
                       "tokenizer.json; give the tokenizer.model of the same model",
                       file.string());
  return model;
}

Pieces::Pieces(std::string_view model, std::string where) : where_(std::move(where)) {
  check_charsmaps(model, where_);
  try {
    const auto status = processor_.LoadFromSerializedProto({model.data(), model.size()});
    require<FormatError>(status.ok(), "[{}] must be a SentencePiece model; {}; give a tokenizer.model", where_,
                         status.ToString());
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    fail<FormatError>("[{}] must be a SentencePiece model; {}", where_, error.what());
  }
  require<FormatError>(size() > 0, "[{}] must be a SentencePiece model; it has no pieces", where_);
}

std::vector<int64_t> Pieces::encode(std::string_view text) const {
  std::vector<int> ids;
  const auto status = processor_.Encode({text.data(), text.size()}, &ids);
  require<DataError>(status.ok(), "[{}] text must be encodable; {}", where_, status.ToString());
  return {ids.begin(), ids.end()};
}

std::string Pieces::decode(std::span<const int64_t> ids) const {
  std::vector<int> kept;
  kept.reserve(ids.size());
  for (const int64_t id : ids) {
    const int checked = check(id);
    if (!processor_.IsControl(checked)) kept.push_back(checked);
  }
  std::string text;
  const auto status = processor_.Decode(kept, &text);
  require<DataError>(status.ok(), "[{}] ids must be decodable; {}", where_, status.ToString());
  return text;
}

std::string Pieces::piece(int64_t id) const { return processor_.IdToPiece(check(id)); }

std::optional<int64_t> Pieces::find(std::string_view piece) const {
  const int id = processor_.PieceToId({piece.data(), piece.size()});
  // Unknown pieces get the number of the piece for unknown ones.
  if (id < 0 || id >= size() || processor_.IdToPiece(id) != piece) return std::nullopt;
  return id;
}

int Pieces::check(int64_t id) const {
  require<DataError>(id >= 0 && id < size(), "[{}] token ids must be in [0, {}); found {}; use the model's own tokenizer", where_,
                     size(), id);
  return static_cast<int>(id);
}

}  // namespace lora::data
