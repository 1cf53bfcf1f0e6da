#include "data/small_tokenizer.h"

#include <sentencepiece_trainer.h>

#include <stdexcept>

#include "lora/core/random.h"

namespace lora::testing {
namespace {

/// Sentences put together from a few words by a fixed generator.
class GeneratedSentences : public sentencepiece::SentenceIterator {
 public:
  GeneratedSentences() { make(); }
  bool done() const override { return count_ > 600; }
  void Next() override { make(); }
  const std::string& value() const override { return sentence_; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  void make() {
    static const std::vector<std::string> words = {"the",    "small",   "cat",  "sat",  "on",   "a",    "red",  "mat",  "and",
                                                   "looked", "at",      "dogs", "who",  "ran",  "over", "hill", "with", "blue",
                                                   "hats",   "singing", "裤子", "颜色", "版型", "宽松", "风格"};
    sentence_.clear();
    for (int i = 0; i < 12; ++i) {
      if (i > 0) sentence_ += ' ';
      sentence_ += words[random_.below(words.size())];
    }
    ++count_;
  }

  SplitMix64 random_{7};
  int count_ = 0;
  std::string sentence_;
};

}  // namespace

std::string train_small_model(const std::string& normalization) {
  GeneratedSentences sentences;
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train({{"model_type", "bpe"},
                                                                  {"vocab_size", "420"},
                                                                  {"byte_fallback", "true"},
                                                                  {"split_digits", "true"},
                                                                  {"normalization_rule_name", normalization},
                                                                  {"remove_extra_whitespaces", "false"},
                                                                  {"add_dummy_prefix", "true"},
                                                                  {"hard_vocab_limit", "false"},
                                                                  {"num_threads", "1"},
                                                                  {"minloglevel", "2"}},
                                                                 &sentences, &model);
  if (!status.ok()) throw std::runtime_error(status.ToString());
  return model;
}

std::shared_ptr<const data::Tokenizer> small_tokenizer() {
  static const auto tokenizer = [] {
    const ScratchFolder folder;
    return data::load_sentencepiece(folder.write("tokenizer.model", train_small_model()));
  }();
  return tokenizer;
}

}  // namespace lora::testing
