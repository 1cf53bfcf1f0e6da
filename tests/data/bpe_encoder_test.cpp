#include "data/bpe_encoder.h"

#include <sentencepiece_trainer.h>

#include "data/small_tokenizer.h"
#include "lora/core/file.h"
#include "lora/core/random.h"

using namespace lora;
using data::BpeEncoder;
using sentencepiece::SentencePieceProcessor;

namespace {

/// The encoder of a model and the library, side by side.
struct Both {
  explicit Both(const std::string& model) {
    REQUIRE(processor.LoadFromSerializedProto(model).ok());
    encoder = BpeEncoder::make(model, processor);
  }

  std::vector<int64_t> library(std::string_view text) const {
    std::vector<int> ids;
    REQUIRE(processor.Encode({text.data(), text.size()}, &ids).ok());
    return {ids.begin(), ids.end()};
  }

  void compare(std::string_view text) const {
    std::vector<int64_t> ids = {-7};
    REQUIRE(encoder->encode(text, ids));
    std::vector<int64_t> expected = library(text);
    expected.insert(expected.begin(), -7);
    INFO("text: " << text);
    CHECK(ids == expected);
  }

  SentencePieceProcessor processor;
  std::optional<BpeEncoder> encoder;
};

using Settings = std::map<std::string, std::string>;

/// A model trained on sentences of a few characters, with BPE and text as it is unless `changes` say otherwise.
std::string train(const Settings& changes) {
  class Sentences : public sentencepiece::SentenceIterator {
   public:
    bool done() const override { return left_ == 0; }
    void Next() override { make(); }
    const std::string& value() const override { return sentence_; }
    sentencepiece::util::Status status() const override { return {}; }
    Sentences() { make(); }

   private:
    void make() {
      --left_;
      sentence_.clear();
      for (int i = 0; i < 40; ++i) {
        static const std::vector<std::string> parts = {"a", "b", "aa", "ab", " ", "颜", "色", "颜色", "é", "😀", "c "};
        sentence_ += parts[random_.below(parts.size())];
      }
    }
    SplitMix64 random_{3};
    int left_ = 400;
    std::string sentence_;
  } sentences;
  std::unordered_map<std::string, std::string> settings = {
      {"model_type", "bpe"},         {"vocab_size", "120"},          {"hard_vocab_limit", "false"},
      {"num_threads", "1"},          {"minloglevel", "2"},           {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "true"},  {"byte_fallback", "false"},     {"remove_extra_whitespaces", "false"},
      {"character_coverage", "1.0"}, {"split_by_whitespace", "true"}};
  for (const auto& [key, value] : changes) settings[key] = value;
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &sentences, &model);
  INFO(status.ToString());
  REQUIRE(status.ok());
  return model;
}

/// Text of short pieces that the models know in part.
std::string random_text(SplitMix64& random) {
  static const std::vector<std::string> parts = {"a",
                                                 "b",
                                                 "aa",
                                                 "ab",
                                                 "aaaa",
                                                 " ",
                                                 "  ",
                                                 "颜",
                                                 "色",
                                                 "颜色",
                                                 "é",
                                                 "😀",
                                                 "c ",
                                                 "▁",
                                                 "\n",
                                                 "\t",
                                                 "1",
                                                 "23",
                                                 "x",
                                                 "中",
                                                 "\xf0\x9f\x98\x81",
                                                 "ø",
                                                 "the",
                                                 " cat",
                                                 "sat",
                                                 "裤子",
                                                 "版型",
                                                 "<s>",
                                                 "<0x41>",
                                                 "</s>",
                                                 "\x7f",
                                                 std::string(1, '\0')};
  std::string text;
  for (uint64_t count = random.below(60); count > 0; --count) text += parts[random.below(parts.size())];
  return text;
}

}  // namespace

TEST_CASE("the encoder gives the library's ids", "[data]") {
  const auto settings =
      GENERATE(Settings{}, Settings{{"byte_fallback", "true"}, {"vocab_size", "380"}}, Settings{{"add_dummy_prefix", "false"}},
               Settings{{"split_by_whitespace", "false"}}, Settings{{"character_coverage", "0.98"}, {"vocab_size", "60"}},
               Settings{{"user_defined_symbols", "ab,颜,abab,é"}});
  const Both both(train(settings));
  REQUIRE(both.encoder);
  for (const char* text :
       {"", " ", "  ", "a", "a ", " a", "aaaaaaaaaaaaaaaaa", "ababababab", "颜色颜色颜", "\n", "xyz中", "▁a"}) {
    both.compare(text);
  }
  SplitMix64 random(5);
  for (int round = 0; round < 3000; ++round) both.compare(random_text(random));
}

TEST_CASE("the encoder gives the library's ids for a tokenizer like Llama's and real sentences", "[data]") {
  const Path quickstart = testing::reference_folder() / "../../quickstart";
  const Both both(read_file(quickstart / "base/tokenizer.model"));
  REQUIRE(both.encoder);
  const std::string rows = read_file(quickstart / "data/dev.jsonl");
  for (size_t begin = 0; begin < rows.size();) {
    const size_t end = rows.find('\n', begin);
    both.compare(std::string_view(rows).substr(begin, end - begin));
    begin = end + 1;
  }
  both.compare(rows);
  const Both small(testing::train_small_model());
  REQUIRE(small.encoder);
  small.compare(rows);
  SplitMix64 random(6);
  for (int round = 0; round < 3000; ++round) {
    both.compare(random_text(random));
    small.compare(random_text(random));
  }
}

TEST_CASE("text that is not UTF-8 is left to the library", "[data]") {
  const Both both(testing::train_small_model());
  std::vector<int64_t> ids = {4};
  for (const char* text : {"a\xff", "\xc3", "\xed\xa0\x80", "\xf5\x80\x80\x80"}) {
    CHECK_FALSE(both.encoder->encode(text, ids));
    CHECK(ids == std::vector<int64_t>{4});
    CHECK(testing::small_tokenizer()->encode(text) == both.library(text));
  }
}

TEST_CASE("models that need more than plain pairs are left to the library", "[data]") {
  const auto settings =
      GENERATE(Settings{{"model_type", "unigram"}, {"vocab_size", "60"}}, Settings{{"model_type", "char"}},
               Settings{{"normalization_rule_name", "nmt_nfkc"}}, Settings{{"remove_extra_whitespaces", "true"}},
               Settings{{"treat_whitespace_as_suffix", "true"}}, Settings{{"user_defined_symbols", "ab,a▁b"}});
  const std::string model = train(settings);
  CHECK_FALSE(Both(model).encoder);
  // The tokenizer works all the same.
  const testing::ScratchFolder folder;
  const auto tokenizer = data::load_sentencepiece(folder.write("m.model", model));
  CHECK(tokenizer->encode("ab 颜色 aab") == Both(model).library("ab 颜色 aab"));
}
