#include "lora/data/tokenizer.h"

#include <optional>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "data/bpe_encoder.h"
#include "data/pieces.h"
#include "lora/core/file.h"
#include "lora/data/glm_tokenizer.h"

namespace lora::data {
namespace {

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(std::string_view model, std::string where)
      : pieces_(model, std::move(where)),
        fingerprint_(digest(std::as_bytes(std::span(model)))),
        bpe_(BpeEncoder::make(model, pieces_.processor())) {}

  std::vector<int64_t> encode(std::string_view text) const override {
    std::vector<int64_t> fast_ids;
    if (bpe_ && bpe_->encode(text, fast_ids)) return fast_ids;
    return pieces_.encode(text);
  }

  std::string decode(std::span<const int64_t> ids) const override { return pieces_.decode(ids); }
  std::string piece(int64_t id) const override { return pieces_.piece(id); }
  int64_t vocab_size() const override { return pieces_.size(); }
  int64_t bos_id() const override { return pieces_.processor().bos_id(); }
  int64_t eos_id() const override { return pieces_.processor().eos_id(); }
  int64_t pad_id() const override { return pieces_.processor().pad_id(); }
  std::string fingerprint() const override { return fingerprint_; }

 private:
  Pieces pieces_;
  std::string fingerprint_;
  std::optional<BpeEncoder> bpe_;  ///< instead of the library where it gives the same
};

bool is_there(const Path& file) {
  std::error_code error;
  return std::filesystem::exists(file, error);
}

}  // namespace

std::shared_ptr<const Tokenizer> load_sentencepiece(const Path& model_file) {
  return std::make_shared<SentencePieceTokenizer>(read_pieces_file(model_file), model_file.string());
}

std::shared_ptr<const Tokenizer> load_tokenizer(const Path& model_file) {
  if (is_glm_tokenizer(model_file)) return load_glm_tokenizer(model_file);
  return load_sentencepiece(model_file);
}

std::shared_ptr<const Tokenizer> find_tokenizer(const Path& model_directory) {
  for (const char* name : {kGlmTokenizerFile, "tokenizer.model"}) {
    if (is_there(model_directory / name)) return load_tokenizer(model_directory / name);
  }
  return nullptr;
}

}  // namespace lora::data
