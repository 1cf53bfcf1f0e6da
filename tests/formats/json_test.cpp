#include "formats/json.h"

#include <string>

#include "lora/core/error.h"
#include "support.h"

using lora::FormatError;
using lora::formats::parse_json;
using lora::formats::parse_ordered_json;
using lora::testing::message_of;

namespace {

std::string refusal(const std::string& text, const lora::formats::JsonLimits& limits = {}) {
  const auto message = message_of<FormatError>([&] { parse_json(text, "a.json", limits); });
  CHECK(message_of<FormatError>([&] { parse_ordered_json(text, "a.json", limits); }) == message);
  CHECK(message.starts_with("[a.json]"));
  return message;
}

bool mentions(const std::string& message, const std::string& part) { return message.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("JSON values are read", "[formats]") {
  const auto json = parse_json(" {\"a\": [1, -2, 2.5, true, null, \"x\\u00e9\"], \"b\": {\"c\": {}}, \"\": []} \n", "a.json");
  CHECK(json["a"][0].is_number_unsigned());
  CHECK(json["a"][1] == -2);
  CHECK(json["a"][2] == 2.5);
  CHECK(json["a"][3] == true);
  CHECK(json["a"][4].is_null());
  CHECK(json["a"][5] == "x\xC3\xA9");
  CHECK(json["b"]["c"].is_object());
  CHECK(json[""].is_array());
  CHECK(json.size() == 3);
  CHECK(parse_json("18446744073709551615", "a.json").get<uint64_t>() == UINT64_MAX);
  CHECK(parse_json("\"a\\u0000b\"", "a.json").get<std::string>() == std::string("a\0b", 3));
  CHECK(parse_json(R"([{"a":1},{"a":{"a":2}}])", "a.json")[1]["a"]["a"] == 2);
}

TEST_CASE("ordered JSON keeps the order of the file", "[formats]") {
  const auto json = parse_ordered_json(R"({"b":1,"a":{"d":2,"c":3}})", "a.json");
  CHECK(json.dump() == R"({"b":1,"a":{"d":2,"c":3}})");
  CHECK(json["a"]["c"] == 3);
}

TEST_CASE("malformed JSON is refused with the byte offset", "[formats]") {
  for (const char* text : {"", " ", "{", "[1,]", "{\"a\"}", "{a:1}", "nul", "01", "1e999", "'a'", "\"\\ud800\"", "\"a\nb\"",
                           "[1 2]", "// x\n1", "NaN", "{\"a\":1,}"}) {
    INFO(text);
    CHECK(mentions(refusal(text), "at byte"));
  }
  CHECK(mentions(refusal("[1, x]"), "at byte 5"));
  CHECK(mentions(refusal("{} x"), "at byte 4"));
  CHECK(mentions(refusal("[] []"), "at byte 4"));
}

TEST_CASE("JSON must be UTF-8 without NUL", "[formats]") {
  for (const char* text : {"\"\xFF\"", "\"\xC0\xAF\"", "\"\xED\xA0\x80\"", "\"\xE2\x82\""}) {
    CHECK(mentions(refusal(text), "at byte"));
  }
  CHECK(mentions(refusal(std::string("{}\0garbage", 10)), "NUL character at byte 2"));
}

TEST_CASE("duplicate keys are refused at every depth", "[formats]") {
  CHECK(mentions(refusal(R"({"a":1,"a":1})"), "the key \"a\" a second time at byte 10"));
  CHECK(mentions(refusal(R"([{"x":{"b":1,"c":2,"b":3}}])"), "the key \"b\""));
  CHECK(mentions(refusal("{\"a\":1,\"\\u0061\":2}"), "the key \"a\""));
}

TEST_CASE("limits hold before the value is built", "[formats]") {
  CHECK(mentions(refusal(std::string(1'000'000, '[')), "64 levels"));
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  CHECK(mentions(refusal(objects), "64 levels of nesting at byte"));
  CHECK(mentions(refusal("[[[1]]]", {.max_depth = 2}), "2 levels of nesting at byte 3"));
  CHECK(parse_json("[[1]]", "a.json", {.max_depth = 2}).size() == 1);
  CHECK(mentions(refusal("[1,2,3]", {.max_values = 3}), "3 values"));
  CHECK(parse_json("[1,2]", "a.json", {.max_values = 3}).size() == 2);
  refusal("[1,2,3]", {.max_bytes = 6});
  CHECK(parse_json(std::string(64, '[') + std::string(64, ']'), "a.json").size() == 1);

  std::string wide = "{";
  for (int i = 0; i < 100'000; ++i) wide += "\"k" + std::to_string(i) + "\":0,";
  wide.back() = '}';
  CHECK(parse_ordered_json(wide, "a.json").size() == 100'000);
}
