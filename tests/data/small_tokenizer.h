// A tokenizer trained in the test: BPE with byte fallback and the settings of Llama's.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lora/data/tokenizer.h"
#include "support.h"

namespace lora::testing {

/// The model file's bytes; the same on every call. `normalization` is a rule name of SentencePiece.
std::string train_small_model(const std::string& normalization = "identity");

/// Loaded once and shared.
std::shared_ptr<const data::Tokenizer> small_tokenizer();

/// One token per byte (id = byte + 3) after <unk> 0, <s> 1, </s> 2, without a leading space:
/// expected ids can be written down by hand.
class ByteTokenizer : public data::Tokenizer {
 public:
  std::vector<int64_t> encode(std::string_view text) const override {
    std::vector<int64_t> ids;
    for (const char byte : text) ids.push_back(static_cast<unsigned char>(byte) + 3);
    return ids;
  }
  std::string decode(std::span<const int64_t> ids) const override {
    std::string text;
    for (const int64_t id : ids) {
      if (id >= 3) text += static_cast<char>(id - 3);
    }
    return text;
  }
  std::string piece(int64_t id) const override {
    return id == 1 ? "<s>" : id == 2 ? "</s>" : std::string(1, static_cast<char>(id - 3));
  }
  int64_t vocab_size() const override { return 259; }
  int64_t bos_id() const override { return 1; }
  int64_t eos_id() const override { return 2; }
  int64_t pad_id() const override { return -1; }
};

}  // namespace lora::testing
