#include "config/scalar.h"

#include <string>

#include "catch.h"
#include "lora/formats/yaml.h"

using lora::config::NumberFault;
using lora::config::parse_decimal;
using lora::config::parse_integer;
using lora::config::yaml_text;

TEST_CASE("integers are decimal", "[config]") {
  int64_t value = -1;
  const auto [text, expected] = GENERATE(table<std::string, int64_t>(
      {{"0", 0}, {"10", 10}, {"-3", -3}, {"+7", 7}, {"9223372036854775807", INT64_MAX}, {"-9223372036854775808", INT64_MIN}}));
  CHECK(parse_integer(text, value) == NumberFault::kNone);
  CHECK(value == expected);
}

TEST_CASE("what is no integer", "[config]") {
  int64_t value = 0;
  const std::string text = GENERATE("", "-", "+", "010", "-010", "00", "0x10", "0o7", "0b1", "1_000", "1.0", "1e3", "1.5", " 1",
                                    "1 ", "--1", "1:30", "one", ".inf", "true", "\xC2\xB9");
  CHECK(parse_integer(text, value) == NumberFault::kNotANumber);
}

TEST_CASE("integers beyond 64 bits are out of range", "[config]") {
  int64_t value = 0;
  CHECK(parse_integer("9223372036854775808", value) == NumberFault::kOutOfRange);
  CHECK(parse_integer("-9223372036854775809", value) == NumberFault::kOutOfRange);
}

TEST_CASE("decimals, with or without an exponent", "[config]") {
  double value = -1;
  const auto [text, expected] = GENERATE(table<std::string, double>({{"2e-4", 2e-4},
                                                                     {"2.0e-4", 2e-4},
                                                                     {"2E+3", 2000},
                                                                     {"-0.5", -0.5},
                                                                     {".5", 0.5},
                                                                     {"1.", 1},
                                                                     {"0", 0},
                                                                     {"1e05", 1e5},
                                                                     {"+1.25", 1.25}}));
  CHECK(parse_decimal(text, value) == NumberFault::kNone);
  CHECK(value == expected);
}

TEST_CASE("what is no decimal", "[config]") {
  double value = 0;
  const std::string text = GENERATE("", ".", "e5", ".e5", "1e", "1e+", "010.5", "0x1p3", "1_0.5", ".inf", "-.inf", ".nan", "inf",
                                    "nan", "1.2.3", "1,5", "1e5.0");
  CHECK(parse_decimal(text, value) == NumberFault::kNotANumber);
}

TEST_CASE("decimals that no double holds are out of range", "[config]") {
  double value = 0;
  CHECK(parse_decimal("1e999", value) == NumberFault::kOutOfRange);
  CHECK(parse_decimal("-1e999", value) == NumberFault::kOutOfRange);
}

TEST_CASE("obvious words stay without quotes, everything else gets them", "[config]") {
  CHECK(yaml_text("q_proj") == "q_proj");
  CHECK(yaml_text("/data/run-1/train.json") == "/data/run-1/train.json");
  CHECK(yaml_text("bias$") == "\"bias$\"");
  CHECK(yaml_text("") == "\"\"");
  CHECK(yaml_text("12") == "\"12\"");
  CHECK(yaml_text("Yes") == "\"Yes\"");
  CHECK(yaml_text("null") == "\"null\"");
}

TEST_CASE("text written as YAML reads back as the same text", "[config]") {
  const std::string text =
      GENERATE("a: b", "a #b", "#a", " leading", "trailing ", "line\nbreak", "tab\there", "quote\"d", "it's", "back\\slash", "[a",
               "{a", "a, b", "- a", "* a", "&a", "!a", "%a", "@a", "`a", "|", ">", "?", "~", "null", "true", "No", "010", "0x10",
               "1e3", ".inf", "<<", "=", "\xE6\x97\xA5\xE6\x9C\xAC", "\xF0\x9F\x92\xA1 x", "\x7f", "\x01", "\r\n",
               "a\xC2\x85"
               "b",
               "a\xE2\x80\xA8"
               "b",
               "\xEF\xBB\xBF"
               "bom",
               ".*\\.(q|v)_proj$", "---", "...");
  CAPTURE(text);
  const auto node = lora::formats::parse_yaml("[" + yaml_text(text) + "]", "test");
  REQUIRE(node.items.size() == 1);
  CHECK(node.items[0].kind == lora::formats::YamlNode::Kind::kScalar);
  CHECK(node.items[0].scalar == text);
}

TEST_CASE("shown text is one bounded line", "[config]") {
  CHECK(lora::config::shown("a\nb\x1b[31m") == "a\\nb\\x1b[31m");
  CHECK(lora::config::shown(std::string(1000, 'x')).size() < 100);
}
