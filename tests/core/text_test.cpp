#include "lora/core/text.h"

#include <climits>
#include <string>
#include <vector>

#include "lora/core/error.h"
#include "support.h"

TEST_CASE("UTF-8 is recognised by the table of the Unicode standard", "[core]") {
  for (const char* good :
       {"", "plain", "\xC2\x80", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"}) {
    CHECK(lora::is_utf8(good));
  }
  CHECK(lora::is_utf8(std::string("a\0b", 3)));
  for (const char* bad :
       {"\x80", "\xC0\xAF", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80",
        "\xF5\x80\x80\x80", "\xFF", "\xC2", "\xE2\x82", "\xF0\x9F\x92", "\xC2\x41", "\xE2\x41\x82", "\xF0\x9F\x41\x80"}) {
    CHECK_FALSE(lora::is_utf8(bad));
  }
  CHECK(lora::find_invalid_utf8("ab\xFF"
                                "c") == 2);
  CHECK(lora::find_invalid_utf8("abc") == 3);
}

TEST_CASE("bytes that are not UTF-8 become replacement characters", "[core]") {
  CHECK(lora::to_utf8("caf\xC3\xA9") == "caf\xC3\xA9");
  CHECK(lora::to_utf8("a\xFF"
                      "b") ==
        "a\xEF\xBF\xBD"
        "b");
  CHECK(lora::to_utf8("\xE2\x82") == "\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(lora::to_utf8("") == "");
}

TEST_CASE("control characters are shown, tabs and line feeds kept", "[core]") {
  CHECK(lora::escape_control("a\x1b[31mb\r\x7f\t\n\xC3\xA9") == "a\\x1b[31mb\\x0d\\x7f\t\n\xC3\xA9");
}

TEST_CASE("the nearest names come first", "[core]") {
  const std::vector<std::string> known = {"lora_alpha", "lora_dropout", "r", "target_modules"};
  CHECK(lora::nearest_names("lora_alhpa", known, 1) == std::vector<std::string>{"lora_alpha"});
  CHECK(lora::nearest_names("targetmodules", known).front() == "target_modules");
  CHECK(lora::nearest_names("x", known).size() == 3);
  CHECK(lora::nearest_names("x", known, 9).size() == 4);
  CHECK(lora::nearest_names("x", {}).empty());
  CHECK(lora::nearest_names(std::string(1'000'000, 'x'), known, 1).size() == 1);
  // kitten -> sitting takes 3 edits, kitten -> mitts 3 as well: equal distances keep their order.
  const std::vector<std::string> equal = {"sitting", "mitts", "kitte"};
  CHECK(lora::nearest_names("kitten", equal) == std::vector<std::string>{"kitte", "sitting", "mitts"});
}

TEST_CASE("HTML is escaped for elements and attributes", "[core]") {
  CHECK(lora::escape_html("<a href=\"x\">'&'</a>") == "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;&lt;/a&gt;");
}

TEST_CASE("numbers are written for people", "[core]") {
  CHECK(lora::with_thousands(0) == "0");
  CHECK(lora::with_thousands(999) == "999");
  CHECK(lora::with_thousands(1000) == "1,000");
  CHECK(lora::with_thousands(1234567) == "1,234,567");
  CHECK(lora::with_thousands(-1234) == "-1,234");
  CHECK(lora::with_thousands(-123) == "-123");
  CHECK(lora::with_thousands(LLONG_MIN) == "-9,223,372,036,854,775,808");

  CHECK(lora::human_bytes(0) == "0 B");
  CHECK(lora::human_bytes(1023) == "1023 B");
  CHECK(lora::human_bytes(1024) == "1.0 KiB");
  CHECK(lora::human_bytes(1536ull << 20) == "1.5 GiB");
  CHECK(lora::human_bytes((1ull << 20) - 1) == "1.0 MiB");
  CHECK(lora::human_bytes(ULLONG_MAX) == "16.0 EiB");
}

TEST_CASE("sizes are read in decimal and binary units", "[core]") {
  const auto parse = [](std::string_view text) { return lora::parse_bytes(text, "--shard-size"); };
  CHECK(parse("1000000") == 1'000'000);
  CHECK(parse("7B") == 7);
  CHECK(parse("5GB") == 5'000'000'000);
  CHECK(parse("512 MiB") == 512ull << 20);
  CHECK(parse("1KiB") == 1024);
  CHECK(parse("4194304TiB") == 1ull << 62);
  for (const char* text : {"", "0", "GB", "-1", "+1", "1.5GB", "1gb", "1 G B", "1GBGB", " 1", "1e3", "4194305TiB",
                           "18446744073709551616", "99999999999999999999TB"}) {
    INFO(text);
    const auto message = lora::testing::message_of<lora::ConfigError>([&] { parse(text); });
    CHECK(message.starts_with("[--shard-size]"));
  }
}
