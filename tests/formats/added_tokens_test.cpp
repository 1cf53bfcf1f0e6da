#include "lora/formats/added_tokens.h"

#include "formats/json.h"
#include "lora/core/error.h"
#include "lora/formats/sentencepiece_model.h"
#include "support.h"

using namespace lora;
using Catch::Matchers::Contains;
using formats::AddedTokens;
using formats::parse_json;

namespace {

const AddedTokens kTokens{5, {"<ad>", "颜色"}};

}  // namespace

TEST_CASE("pieces are appended as the proto writes them", "[formats][tokens]") {
  const std::vector<std::string> pieces = {"ab"};
  // pieces { piece: "ab" score: 0 type: USER_DEFINED }
  CHECK(formats::with_user_defined_pieces("M", pieces) == std::string("M\x0a\x0b\x0a\x02"
                                                                      "ab\x15\0\0\0\0\x18\x04",
                                                                      14));
  CHECK(formats::without_dummy_prefix("M") == std::string("M\x1a\x02\x18\0", 5));
  const std::vector<std::string> wide = {std::string(200, 'x')};
  CHECK(formats::with_user_defined_pieces("", wide).substr(0, 6) == "\x0a\xd2\x01\x0a\xc8\x01");
}

TEST_CASE("tokenizer.json gains tokens behind its own", "[formats][tokens]") {
  const char* kFile =
      R"({"added_tokens": [{"id": 1, "content": "<s>", "special": true}], "model": {"type": "BPE", "vocab": {"<unk>": 0, "<s>": 1, "a": 2}}})";
  const auto json = parse_json(formats::add_to_tokenizer_json(kFile, kTokens, "tokenizer.json"), "new");
  REQUIRE(json["added_tokens"].size() == 3);
  CHECK(json["added_tokens"][0]["content"] == "<s>");
  CHECK(json["added_tokens"][2] ==
        parse_json(R"({"id": 6, "content": "颜色", "single_word": false, "lstrip": false, "rstrip": false,
                                                   "normalized": false, "special": false})",
                   "expected"));
  CHECK(json["model"]["vocab"].size() == 3);
  // Once more changes nothing.
  CHECK(formats::add_to_tokenizer_json(json.dump(), kTokens, "x") == json.dump(2) + "\n");
}

TEST_CASE("tokens beyond tokenizer.model are not overwritten", "[formats][tokens]") {
  CHECK_THROWS_WITH(formats::add_to_added_tokens_json(R"({"<pad>": 5})", kTokens, "added_tokens.json"),
                    Contains("[added_tokens.json]") && Contains("<pad>") && Contains("as 5"));
  CHECK_THROWS_AS(formats::add_to_added_tokens_json(R"({"<ad>": 4})", kTokens, "x"), FormatError);
  // Named first, in the order of their ids, they are new tokens like the others.
  const auto json = parse_json(formats::add_to_added_tokens_json(R"({"<ad>": 5})", kTokens, "x"), "new");
  CHECK(json == parse_json(R"({"<ad>": 5, "颜色": 6})", "expected"));
  CHECK_THROWS_AS(formats::add_to_tokenizer_json(R"({"model": {"vocab": {"a": 5}}})", kTokens, "x"), FormatError);
}

TEST_CASE("what is no file of transformers is refused", "[formats][tokens]") {
  for (const char* text : {"", "[]", "{", "{}", R"({"model": {}})", R"({"model": {"vocab": {"a": "b"}}})",
                           R"({"model": {"vocab": {}}, "added_tokens": [1]})"}) {
    INFO(text);
    CHECK_THROWS_AS(formats::add_to_tokenizer_json(text, kTokens, "x"), FormatError);
  }
  CHECK_THROWS_AS(formats::add_to_added_tokens_json(R"({"a": "b"})", kTokens, "x"), FormatError);
  CHECK_THROWS_AS(formats::add_to_tokenizer_config(R"({"added_tokens_decoder": {"x": {"content": "y"}}})", kTokens, "x"),
                  FormatError);
}

TEST_CASE("tokenizer_config.json is left alone without a decoder", "[formats][tokens]") {
  CHECK(formats::add_to_tokenizer_config(R"({"legacy": false})", kTokens, "x") == R"({"legacy": false})");
  const auto json =
      parse_json(formats::add_to_tokenizer_config(R"({"added_tokens_decoder": {"1": {"content": "<s>"}}})", kTokens, "x"), "new");
  CHECK(json["added_tokens_decoder"]["6"]["content"] == "颜色");
  CHECK(json["added_tokens_decoder"].size() == 3);
}
