#include "lora/data/tokenizer.h"

#include <sentencepiece_processor.h>

#include <exception>
#include <optional>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "data/bpe_encoder.h"
#include "lora/core/file.h"

namespace lora::data {
namespace {

constexpr uint64_t kMaxModelBytes = 64u << 20;

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(std::string_view model, std::string where) : where_(std::move(where)) {
    const auto status = processor_.LoadFromSerializedProto({model.data(), model.size()});
    require<FormatError>(status.ok(),
                         "[{}] must be a SentencePiece model; {}; give a tokenizer.model", where_,
                         status.ToString());
    require<FormatError>(vocab_size() > 0, "[{}] must be a SentencePiece model; it has no pieces",
                         where_);
    fingerprint_ = digest(std::as_bytes(std::span(model)));
    bpe_ = BpeEncoder::make(model, processor_);
  }

  std::vector<int64_t> encode(std::string_view text) const override {
    std::vector<int64_t> fast_ids;
    if (bpe_ && bpe_->encode(text, fast_ids)) return fast_ids;
    std::vector<int> ids;
    const auto status = processor_.Encode({text.data(), text.size()}, &ids);
    require<DataError>(status.ok(), "[{}] text must be encodable; {}", where_, status.ToString());
    return {ids.begin(), ids.end()};
  }

  std::string decode(std::span<const int64_t> ids) const override {
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

  std::string piece(int64_t id) const override { return processor_.IdToPiece(check(id)); }
  int64_t vocab_size() const override { return processor_.GetPieceSize(); }
  int64_t bos_id() const override { return processor_.bos_id(); }
  int64_t eos_id() const override { return processor_.eos_id(); }
  int64_t pad_id() const override { return processor_.pad_id(); }
  std::string fingerprint() const override { return fingerprint_; }

 private:
  int check(int64_t id) const {
    require<DataError>(id >= 0 && id < vocab_size(),
                       "[{}] token ids must be in [0, {}); found {}; use the model's own tokenizer",
                       where_, vocab_size(), id);
    return static_cast<int>(id);
  }

  std::string where_, fingerprint_;
  std::optional<BpeEncoder> bpe_;  ///< instead of the library where it gives the same
  sentencepiece::SentencePieceProcessor processor_;
};

bool looks_like_json(std::string_view bytes) {
  const size_t first = bytes.find_first_not_of(" \t\r\n");
  return first != std::string_view::npos && bytes[first] == '{';
}

}  // namespace

std::shared_ptr<const Tokenizer> load_sentencepiece(const Path& model_file) {
  const std::string where = model_file.string();
  const std::string model = read_file(model_file, kMaxModelBytes);
  require<FormatError>(!looks_like_json(model),
                       "[{}] must be a SentencePiece model; found JSON, as in a Hugging Face "
                       "tokenizer.json; give the tokenizer.model of the same model",
                       where);
  try {
    return std::make_shared<SentencePieceTokenizer>(model, where);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    fail<FormatError>("[{}] must be a SentencePiece model; {}", where, error.what());
  }
}

std::shared_ptr<const Tokenizer> find_tokenizer(const Path& model_directory) {
  const Path file = model_directory / "tokenizer.model";
  std::error_code error;
  return std::filesystem::exists(file, error) ? load_sentencepiece(file) : nullptr;
}

}  // namespace lora::data
