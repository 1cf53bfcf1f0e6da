#include "lora/eval/segmenter.h"

#include <string>
#include <vector>

#include "eval_fixture.h"
#include "lora/core/error.h"

using lora::eval::make_segmenter;
using lora::testing::message_of;
using Strings = std::vector<std::string>;

namespace {

Strings cut(std::string_view segmenter, std::string_view text) {
  return lora::testing::strings_of(make_segmenter(segmenter)->cut(text));
}

/// Python 3.11: [c for c in map(chr, range(0x110000)) if c.isspace()].
const Strings kSpaces = {"\t",     "\n",     "\v",     "\f",     "\r",     "\x1c",   "\x1d",   "\x1e",   "\x1f",   " ",
                         "\u0085", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006",
                         "\u2007", "\u2008", "\u2009", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"};

}  // namespace

TEST_CASE("char: every character that is not white space", "[segmenter]") {
  CHECK(cut("char", "白色 ab\n😀é\xFF\xE2\x82") == Strings{"白", "色", "a", "b", "😀", "é", "\xFF", "\xE2", "\x82"});
  CHECK(cut("char", "") == Strings{});
  CHECK(cut("char", " \r\n") == Strings{});
  CHECK(cut("char", {"a\0b", 3}) == Strings{"a", std::string(1, '\0'), "b"});
}

TEST_CASE("whitespace: what Python's str.split gives", "[segmenter]") {
  CHECK(cut("whitespace", "the cat  sat\ton\r\nit ") == Strings{"the", "cat", "sat", "on", "it"});
  CHECK(cut("whitespace", "") == Strings{});
  CHECK(cut("whitespace", " \n ") == Strings{});
  CHECK(cut("whitespace", "one") == Strings{"one"});
  CHECK(cut("whitespace", "a\xFF b") == Strings{"a\xFF", "b"});
}

TEST_CASE("white space is what Python takes for it", "[segmenter]") {
  for (const std::string& space : kSpaces) {
    INFO(space);
    CHECK(cut("whitespace", "a" + space + "b") == Strings{"a", "b"});
    CHECK(cut("char", "a" + space + "b") == Strings{"a", "b"});
  }
  for (const std::string other : {"\x08", "\x0e", "\x1b", "\x7f", "\u0084", "\u180e", "\u200b", "\u2060", "\ufeff"}) {
    CHECK(cut("whitespace", "a" + other + "b") == Strings{"a" + other + "b"});
  }
}

TEST_CASE("a segmenter is known by its name and has a dictionary or has none", "[segmenter]") {
  const std::string unknown = message_of<lora::ConfigError>([] { make_segmenter("dit"); });
  CHECK(unknown.find("\"dit\"; did you mean dict?") != std::string::npos);
  CHECK(message_of<lora::ConfigError>([] { make_segmenter("dict"); }).find("found none") != std::string::npos);
  CHECK(message_of<lora::ConfigError>([] { make_segmenter("char", "words.txt"); }).find("words.txt") != std::string::npos);
  CHECK_THROWS_AS(make_segmenter("dict", "/no/such/dictionary"), lora::IoError);
  const auto words = make_segmenter("dict", lora::testing::eval_reference("dictionary.txt"));
  CHECK(lora::testing::strings_of(words->cut("这款连衣裙")) == Strings{"这款", "连衣裙"});
}

TEST_CASE("a text beyond 4 MiB is refused", "[segmenter]") {
  const std::string longest(4u << 20, 'x'), longer = longest + "x";
  CHECK(make_segmenter("char")->cut(longest).size() == longest.size());
  for (const char* name : {"char", "whitespace"}) {
    CHECK(message_of<lora::DataError>([&] { make_segmenter(name)->cut(longer); }).find("4194305") != std::string::npos);
  }
}
