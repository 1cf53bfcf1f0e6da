#include "lora/data/new_tokens.h"

#include <sentencepiece_processor.h>

#include "data/small_tokenizer.h"
#include "lora/core/error.h"
#include "lora/core/file.h"
#include "lora/core/random.h"
#include "support.h"

using namespace lora;
using Catch::Matchers::Contains;

namespace {

std::vector<std::string> tokens_of(const std::string& text) {
  const testing::ScratchFolder folder;
  return data::read_new_tokens(folder.write("tokens.txt", text));
}

}  // namespace

TEST_CASE("a file of tokens is one token per line", "[data][tokens]") {
  CHECK(tokens_of("<ad>\n\n  \r\n颜色词\r\nzebra") == std::vector<std::string>{"<ad>", "颜色词", "zebra"});
  CHECK(tokens_of("\xef\xbb\xbf<ad>\n") == std::vector<std::string>{"<ad>"});
  const auto refused = [](const std::string& text, const char* what) {
    INFO(text);
    CHECK_THROWS_WITH(tokens_of(text), Contains(what));
    CHECK_THROWS_AS(tokens_of(text), DataError);
  };
  refused("", "found none");
  refused("\n \n", "found none");
  refused("a1\nb2\na1\n", "tokens.txt:3] a token must come once");
  refused("ab\n\xff\n", "tokens.txt:2] a token must be UTF-8");
  refused(std::string(257, 'x'), "at most 256 bytes; found 257");
  for (const char* text : {"a b", " a", "a\tb", "\xe2\x96\x81w", "a\xc2\xa0", "a\x01"}) refused(text, "must not hold spaces");
  CHECK_THROWS_AS(data::read_new_tokens("/nowhere/tokens.txt"), IoError);
}

TEST_CASE("new tokens get the next ids, and old texts keep theirs", "[data][tokens]") {
  const testing::ScratchFolder folder;
  const Path file = folder.write("tokenizer.model", testing::train_small_model());
  const auto before = data::load_sentencepiece(file);
  const std::vector<std::string> tokens = {"<ad>", "zebra", "zebras", "颜色宽松", "é"};
  const auto extended = data::extend_tokenizer(file, tokens);
  const auto after = data::load_sentencepiece(folder.write("new.model", extended.model));
  const int64_t first = before->vocab_size();
  CHECK(extended.first_id == first);
  CHECK(extended.vocab_size() == first + 5);
  CHECK(after->vocab_size() == first + 5);
  CHECK(read_file(file) == extended.model.substr(0, read_file(file).size()));
  const auto ids_of = [&](const std::string& text) { return after->encode(text); };
  CHECK(ids_of("the<ad>cat").at(1) == first);
  CHECK(ids_of("the zebras").back() == first + 2);  // the longest
  CHECK(after->decode(ids_of("the <ad> zebra 颜色宽松")) == "the <ad> zebra 颜色宽松");
  for (const char* text : {"the cat sat", "zeb ra", "<a d>", "颜色 宽松", "singing 裤子 \n 12"})
    CHECK(ids_of(text) == before->encode(text));
  CHECK(after->bos_id() == before->bos_id());
  CHECK(after->piece(3) == before->piece(3));
  // What they were: without the space that comes before a text.
  for (size_t i = 0; i < tokens.size(); ++i) CHECK(before->decode(extended.old_pieces[i]) == tokens[i]);
  CHECK_THROWS_WITH(data::extend_tokenizer(file, {"cat", "<s>"}), Contains("must not be in the vocabulary"));
  CHECK_THROWS_AS(data::extend_tokenizer(folder.write("no.model", "no model"), tokens), FormatError);
}

TEST_CASE("the fast encoder gives the library's ids with tokens that a user defined", "[data][tokens]") {
  const testing::ScratchFolder folder;
  const Path file = folder.write("tokenizer.model", testing::train_small_model());
  const std::vector<std::string> tokens = {"<ad>", "zebra", "zebras", "catz", "颜色宽松", "é", "xx"};
  const auto extended = data::extend_tokenizer(file, tokens);
  sentencepiece::SentencePieceProcessor library;
  REQUIRE(library.LoadFromSerializedProto(extended.model).ok());
  const auto ours = data::load_sentencepiece(folder.write("new.model", extended.model));
  static const std::vector<std::string> parts = {"<ad>", "zebra", "zebras", "<a",   "d>",       "catz", "cat", "z",
                                                 "c",    "a",     " ",      "颜色", "颜色宽松", "宽松", "é",   "e",
                                                 "x",    "xx",    "the",    " cat", "\n",       "😀",    "12",  "▁"};
  SplitMix64 random(8);
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (uint64_t count = random.below(30); count > 0; --count) text += parts[random.below(parts.size())];
    std::vector<int> expected;
    REQUIRE(library.Encode(text, &expected).ok());
    INFO(text);
    REQUIRE(ours->encode(text) == std::vector<int64_t>(expected.begin(), expected.end()));
  }
}
