#include "lora/eval/dict_segmenter.h"

#include <random>
#include <string>
#include <vector>

#include "eval_fixture.h"
#include "lora/core/error.h"
#include "lora/core/text.h"
#include "lora/eval/bleu.h"

using lora::eval::DictSegmenter;
using lora::testing::message_of;
using lora::testing::strings_of;
using Strings = std::vector<std::string>;

namespace {

Strings cut(const DictSegmenter& segmenter, std::string_view text) { return strings_of(segmenter.cut(text)); }

/// A segmenter of a dictionary with this text.
DictSegmenter segmenter_of(std::string_view dictionary) {
  const lora::testing::ScratchFolder scratch;
  return DictSegmenter(scratch.write("words.txt", dictionary));
}

/// The error of a dictionary with this text, without the folder's name.
std::string error_of(std::string_view dictionary) {
  const std::string message = message_of<lora::FormatError>([&] { segmenter_of(dictionary); });
  const size_t name = message.find("words.txt");
  REQUIRE(name != std::string::npos);
  return message.substr(name);
}

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("texts are cut as jieba cuts them with the same dictionary", "[dict]") {
  const DictSegmenter segmenter(lora::testing::eval_reference("dictionary.txt"));
  const auto rows = lora::testing::read_json(lora::testing::eval_reference("segmentations.json"));
  REQUIRE(rows.size() > 50);
  for (const auto& row : rows) {
    CHECK(cut(segmenter, row["text"].get<std::string>()) == row["tokens"].get<Strings>());
  }
}

TEST_CASE("of equally probable cuts the one with the longer first word is taken", "[dict]") {
  const DictSegmenter segmenter = segmenter_of("甲乙 5\n乙丙 5\n甲 6\n丙 6\n");
  CHECK(cut(segmenter, "甲乙丙") == Strings{"甲乙", "丙"});
}

TEST_CASE("of a word given twice the last frequency counts, 0 takes it away", "[dict]") {
  CHECK(cut(segmenter_of("白 1\n色 1\n白色 0\n白色 9\n"), "白色") == Strings{"白色"});
  CHECK(cut(segmenter_of("白 1\n色 1\n白色 9\n白色 0\n"), "白色") == Strings{"白", "色"});
  // A character of frequency 0 is cut as one that no word has: what stands before it is cut as
  // ever.
  CHECK(cut(segmenter_of("甲 0\n白 9\n色 9\n白色 1\n"), "白色甲") == Strings{"白", "色", "甲"});
  // 甲乙 is 1/8 of all and 甲 times 乙 9/64; with the 9 that no longer counts 1/17 and 9/289.
  CHECK(cut(segmenter_of("丁 1\n甲乙 1\n甲 3\n乙 3\n"), "甲乙") == Strings{"甲", "乙"});
  CHECK(cut(segmenter_of("丁 9\n丁 1\n甲乙 1\n甲 3\n乙 3\n"), "甲乙") == Strings{"甲乙"});
}

TEST_CASE("the format: byte-order mark, line ends, tags, empty lines, signs", "[dict]") {
  const DictSegmenter segmenter = segmenter_of("\xEF\xBB\xBF白色 5 n\r\n\n  \n 上衣 5 \nT恤 3 some more");
  CHECK(cut(segmenter, "白色上衣T恤") == Strings{"白色", "上衣", "T恤"});
}

TEST_CASE("bytes that are not UTF-8 and NUL are tokens of their own", "[dict]") {
  const DictSegmenter segmenter(lora::testing::eval_reference("dictionary.txt"));
  CHECK(cut(segmenter, "白色\xFF白色\xE7\x99") == Strings{"白色", "\xFF", "白色", "\xE7", "\x99"});
  CHECK(cut(segmenter, {"ab\0cd", 5}) == Strings{"ab", std::string(1, '\0'), "cd"});
}

TEST_CASE("whatever the bytes are, the tokens are the text, and the numbers those of repaired text", "[dict]") {
  const DictSegmenter segmenter(lora::testing::eval_reference("dictionary.txt"));
  const Strings pieces = {"白色", "\xE7", "\x99",         "\xBD",     "\xF0\x9F", "😀",      "ab",
                          "\r",   "\n",   "\xED\xA0\x80", "\xC0\xAF", "\xFF",     "连衣裙", " "};
  std::minstd_rand draw(1);
  for (int round = 0; round < 2000; ++round) {
    std::string text, joined;
    for (size_t i = draw() % 30; i > 0; --i) text += pieces[draw() % pieces.size()];
    for (const std::string_view token : segmenter.cut(text)) {
      CHECK_FALSE(token.empty());
      joined += token;
    }
    CHECK(joined == text);
    CHECK(segmenter.cut(text).size() == segmenter.cut(lora::to_utf8(text)).size());
    CHECK(lora::eval::bleu4(text, "白色ab😀") == lora::eval::bleu4(lora::to_utf8(text), "白色ab😀"));
  }
}

TEST_CASE("long texts take time in proportion", "[dict]") {
  const DictSegmenter segmenter = segmenter_of(std::string(64, 'a') + " 5\na 1\n");
  const std::string longest(4u << 20, 'a');
  CHECK(segmenter.cut(longest).size() == longest.size() / 64);
  CHECK_THROWS_AS(segmenter.cut(longest + "a"), lora::DataError);
}

TEST_CASE("lines that are not a word and a frequency are errors with file and line", "[dict]") {
  for (const std::string line : {"白色", "白色 ", "白色  5", "白色\t5", "白色 n", "白色 -5", "白色 +5", "白色 5.5", "白色 1e3",
                                 "白色 5n", "白色 0x10", "白色 1000000000000001", "白色 99999999999999999999999"}) {
    INFO(line);
    const std::string message = error_of("上衣 3\n\n" + line + "\n甲 1\n");
    CHECK(message.starts_with("words.txt:3]"));
    CHECK(contains(message, "a whole frequency from 0 to 1000000000000000"));
  }
  CHECK_NOTHROW(segmenter_of("白色 1000000000000000\n"));
}

TEST_CASE("words from a hostile file are refused", "[dict]") {
  CHECK(contains(error_of("白\xFF 5\n"), "words.txt:1] a dictionary must be UTF-8; byte 3"));
  CHECK(contains(error_of(std::string("a 1\nb\0c 5\n", 10)), "words.txt:2] a word must have no control characters"));
  CHECK(contains(error_of("a\x1b[31m 5\n"), "\\x1b"));
  CHECK(contains(error_of("a\tb 5\n"), "control characters"));
  CHECK(contains(error_of("a\x7f 5\n"), "control characters"));
  std::string longest;
  for (int i = 0; i < 64; ++i) longest += "白";
  CHECK_NOTHROW(segmenter_of(longest + " 5\n"));
  CHECK(contains(error_of(longest + "白 5\n"), "at most 64 characters; found 65"));
  CHECK(contains(error_of(std::string(5000, 'x') + " 5\n"), "words.txt:1]"));
}

TEST_CASE("a dictionary without words, with too much of them and one that is no file", "[dict]") {
  for (const char* nothing : {"", "\n\n", "白色 0\n上衣 0\n"}) CHECK(contains(error_of(nothing), "found none"));
  std::string heavy;
  for (int i = 0; i < 10; ++i) heavy += "白色 1000000000000000\n";
  CHECK(error_of(heavy).starts_with("words.txt:10]"));
  std::string large;
  while (large.size() <= 32u << 20) large += "a word is followed by no frequency here 1\n";
  CHECK(error_of(large).starts_with("words.txt:1]"));
  large.clear();
  while (large.size() <= 32u << 20) large += "word 1 " + std::string(2000, 'n') + "\n";
  CHECK(contains(error_of(large), "at most 33554432 bytes"));
  CHECK_THROWS_AS(DictSegmenter("/no/such/dictionary"), lora::IoError);
  CHECK_THROWS_AS(DictSegmenter(std::filesystem::temp_directory_path()), lora::IoError);
}
