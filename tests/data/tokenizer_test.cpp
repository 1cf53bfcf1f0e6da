#include "lora/data/tokenizer.h"

#include <fstream>
#include <thread>

#include "data/small_tokenizer.h"
#include "formats/json.h"
#include "lora/core/error.h"
#include "lora/core/file.h"
#include "lora/core/random.h"

using namespace lora;

TEST_CASE("text survives encoding and decoding", "[data]") {
  const auto tokenizer = testing::small_tokenizer();
  CHECK(tokenizer->vocab_size() > 300);
  for (const std::string text :
       {"the cat sat", "", " two  spaces ", "line\nend\tand tab", "颜色裤子 and ❤ 🚀", "12345", "\n", "unseen WORDS?"}) {
    INFO(text);
    const auto ids = tokenizer->encode(text);
    CHECK(tokenizer->decode(ids) == text);
    for (const int64_t id : ids) CHECK((id >= 3 && id < tokenizer->vocab_size()));
  }
  CHECK(tokenizer->encode("").empty());
}

TEST_CASE("control tokens are known and give no text", "[data]") {
  const auto tokenizer = testing::small_tokenizer();
  CHECK(tokenizer->bos_id() == 1);
  CHECK(tokenizer->eos_id() == 2);
  CHECK(tokenizer->pad_id() == -1);
  CHECK(tokenizer->piece(1) == "<s>");
  CHECK(tokenizer->piece(2) == "</s>");
  std::vector<int64_t> ids = tokenizer->encode("the cat");
  ids.insert(ids.begin(), 1);
  ids.insert(ids.begin() + 2, 2);
  ids.push_back(2);
  CHECK(tokenizer->decode(ids) == "the cat");
  // A control token's name in the text is text.
  for (const int64_t id : tokenizer->encode("<s> a </s>")) CHECK(id > 2);
}

TEST_CASE("ids outside the vocabulary are refused", "[data]") {
  const auto tokenizer = testing::small_tokenizer();
  for (const int64_t id : {int64_t{-1}, tokenizer->vocab_size(), int64_t{1} << 32, (int64_t{1} << 32) + 5}) {
    CHECK_THROWS_AS(tokenizer->decode(std::vector<int64_t>{5, id}), DataError);
    CHECK_THROWS_AS(tokenizer->piece(id), DataError);
  }
}

TEST_CASE("files that are no SentencePiece model are refused by name", "[data]") {
  const testing::ScratchFolder folder;
  CHECK_THROWS_AS(data::load_sentencepiece(folder / "missing"), IoError);
  CHECK_THROWS_AS(data::load_sentencepiece(folder.path()), IoError);
  CHECK_THROWS_AS(data::load_sentencepiece(folder.write("empty", "")), FormatError);
  CHECK_THROWS_AS(data::load_sentencepiece(folder.write("text", "hello there")), FormatError);
  const Path json = folder.write("tokenizer.json", R"(  {"version": "1.0"})");
  CHECK(testing::message_of<FormatError>([&] { data::load_sentencepiece(json); }).find("tokenizer.json") != std::string::npos);
}

TEST_CASE("a directory's tokenizer is found, or none", "[data]") {
  const testing::ScratchFolder folder;
  CHECK(data::find_tokenizer(folder.path()) == nullptr);
  folder.write("tokenizer.model", testing::train_small_model());
  const auto found = data::find_tokenizer(folder.path());
  REQUIRE(found != nullptr);
  CHECK(found->encode("the cat") == testing::small_tokenizer()->encode("the cat"));
}

TEST_CASE("damaged models are refused or work, and never crash", "[data]") {
  const testing::ScratchFolder folder;
  const std::string good = testing::train_small_model();
  SplitMix64 random(3);
  int refused = 0;
  for (int i = 0; i < 100; ++i) {
    std::string bad = good;
    bad[random.below(bad.size())] = static_cast<char>(random.next());
    if (i % 3 == 0) bad.resize(random.below(bad.size()));
    try {
      const auto tokenizer = data::load_sentencepiece(folder.write("bad", bad));
      tokenizer->decode(tokenizer->encode("the cat 裤子"));
    } catch (const Error&) {
      ++refused;
    }
  }
  CHECK(refused > 20);
}

TEST_CASE("threads can share a tokenizer", "[data]") {
  const auto tokenizer = testing::small_tokenizer();
  const auto expected = tokenizer->encode("the small cat looked at dogs");
  std::vector<int> equal(4);
  std::vector<std::thread> threads;
  for (int& count : equal) {
    threads.emplace_back([&count, &tokenizer, &expected] {
      for (int i = 0; i < 200; ++i) {
        count += tokenizer->encode("the small cat looked at dogs") == expected;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(equal == std::vector<int>(4, 200));
}

TEST_CASE("a published tokenizer gives the published ids", "[data]") {
  const auto folder = testing::outside_data("data/stories260K");
  if (!folder) return;
  const auto tokenizer = data::load_sentencepiece(*folder / "tok512.model");
  const auto golden = formats::parse_json(read_file(*folder / "golden.json"), "golden.json");
  const auto prompt = golden.at("prompt_ids").get<std::vector<int64_t>>();
  const auto generated = golden.at("greedy_ids").get<std::vector<int64_t>>();
  CHECK(tokenizer->vocab_size() == 512);
  std::vector<int64_t> ids = tokenizer->encode("Once upon a time, there was a little girl");
  ids.insert(ids.begin(), tokenizer->bos_id());
  CHECK(std::vector<int64_t>(prompt.begin(), prompt.begin() + 10) == std::vector<int64_t>(ids.begin(), ids.begin() + 10));
  CHECK(tokenizer->decode(generated) == golden.at("greedy_text").get<std::string>());
  // And the text gives the ids back.
  ids = tokenizer->encode(golden.at("greedy_text").get<std::string>());
  ids.insert(ids.begin(), tokenizer->bos_id());
  CHECK(ids == generated);
}
