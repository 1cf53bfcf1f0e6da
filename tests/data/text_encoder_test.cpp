#include "data/text_encoder.h"

#include "data/small_tokenizer.h"
#include "lora/core/file.h"
#include "lora/core/random.h"

using namespace lora;

namespace {

std::string random_text(uint64_t seed) {
  static const std::vector<std::string> pieces = {"the",
                                                  " ",
                                                  " ",
                                                  " cat",
                                                  "\n",
                                                  "\n\n",
                                                  "裤子",
                                                  "。",
                                                  "  ",
                                                  "\t",
                                                  "mat",
                                                  "12",
                                                  "🚀",
                                                  " a",
                                                  "\r\n",
                                                  "x\u00a0y",
                                                  "the small cat sat on the mat "};
  SplitMix64 random(seed);
  std::string text;
  while (text.size() < 4000) text += pieces[random.below(pieces.size())];
  return text;
}

}  // namespace

TEST_CASE("a long text in segments has the ids of the text in one piece", "[data]") {
  const auto tokenizer = testing::small_tokenizer();
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const std::string text = random_text(seed);
    const std::vector<int64_t> whole = tokenizer->encode(text);
    for (const size_t segment : {1, 100, 1000, 5000}) {
      INFO(seed << " " << segment);
      CHECK(data::encode_long_text(*tokenizer, text, segment) == whole);
    }
  }
}

TEST_CASE("text without a place to cut is encoded whole", "[data]") {
  const auto tokenizer = testing::small_tokenizer();
  std::string text;
  for (int i = 0; i < 200; ++i) text += "裤子颜色";
  CHECK(data::encode_long_text(*tokenizer, text, 50) == tokenizer->encode(text));
  CHECK(data::encode_long_text(*tokenizer, "", 50).empty());
  // This tokenizer puts nothing in front of a text: no cut before a space is clean, before a line
  // is.
  const testing::ByteTokenizer bytes;
  const std::string lines = random_text(99);
  CHECK(data::encode_long_text(bytes, lines, 50) == bytes.encode(lines));
}

TEST_CASE("a tokenizer that normalises text still gives the same ids in segments", "[data]") {
  const testing::ScratchFolder folder;
  const auto tokenizer = data::load_sentencepiece(folder.write("tokenizer.model", testing::train_small_model("nmt_nfkc")));
  for (uint64_t seed = 0; seed < 5; ++seed) {
    const std::string text = random_text(seed);
    CHECK(data::encode_long_text(*tokenizer, text, 100) == tokenizer->encode(text));
  }
}

TEST_CASE("a published text in segments has the ids of the text in one piece", "[data]") {
  const auto folder = testing::outside_data("data");
  if (!folder) return;
  const auto tokenizer = data::load_sentencepiece(*folder / "stories260K/tok512.model");
  const std::string text = read_file(*folder / "public_domain_text/tinyshakespeare.txt");
  CHECK(data::encode_long_text(*tokenizer, text) == tokenizer->encode(text));
}
