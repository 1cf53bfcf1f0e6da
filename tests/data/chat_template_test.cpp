#include "lora/data/chat_template.h"

#include "data/small_tokenizer.h"
#include "data/strip.h"
#include "lora/core/error.h"

using namespace lora;
using data::Message;

namespace {

std::string all_text(const data::Example& example) {
  std::string text;
  const testing::ByteTokenizer tokenizer;
  for (const int32_t id : example.input_ids) text += tokenizer.piece(id);
  return text;
}

/// The text of the targets, other positions as '_'.
std::string target_text(const data::Example& example) {
  std::string text;
  const testing::ByteTokenizer tokenizer;
  for (const int32_t label : example.labels) {
    text += label == data::kIgnoreLabel ? "_" : tokenizer.piece(label);
  }
  return text;
}

}  // namespace

TEST_CASE("turns are laid out and masked as the Llama-2 template asks", "[data]") {
  // A byte tokenizer puts no space in front of a text, so the answer follows "[/INST]" directly.
  const testing::ByteTokenizer tokenizer;
  const data::Example example = data::encode_llama2_chat(
      {{"user", " hi \n"}, {"assistant", "\tyes "}, {"user", "bye"}, {"assistant", "ok"}},
      tokenizer);
  CHECK(all_text(example) == "<s>[INST] hi [/INST]yes </s><s>[INST] bye [/INST]ok </s>");
  CHECK(target_text(example) == "__________________yes </s>___________________ok </s>");
  CHECK(example.num_targets() == 9);
}

TEST_CASE("the system text is folded into the first user message", "[data]") {
  const testing::ByteTokenizer tokenizer;
  const data::Example example = data::encode_llama2_chat(
      {{"system", "be brief"}, {"user", "hi"}, {"assistant", "yes"}}, tokenizer);
  CHECK(all_text(example) == "<s>[INST] <<SYS>>\nbe brief\n<</SYS>>\n\nhi [/INST]yes </s>");
}

TEST_CASE("a last question without an answer ends the prompt", "[data]") {
  const testing::ByteTokenizer tokenizer;
  const data::Example example = data::encode_llama2_chat({{"user", "hi"}}, tokenizer);
  CHECK(all_text(example) == "<s>[INST] hi [/INST]");
  CHECK(example.num_targets() == 0);
}

TEST_CASE("with SentencePiece a turn equals the turn encoded in one piece", "[data]") {
  const auto tokenizer = testing::small_tokenizer();
  const data::Example example = data::encode_llama2_chat(
      {{"user", "who sat on the mat"}, {"assistant", "a small cat"}}, *tokenizer);
  std::vector<int64_t> whole = tokenizer->encode("[INST] who sat on the mat [/INST] a small cat ");
  whole.insert(whole.begin(), tokenizer->bos_id());
  whole.push_back(tokenizer->eos_id());
  CHECK(std::vector<int64_t>(example.input_ids.begin(), example.input_ids.end()) == whole);
}

TEST_CASE("conversations that are none are refused", "[data]") {
  const testing::ByteTokenizer tokenizer;
  const auto encode = [&](const std::vector<Message>& messages) {
    return data::encode_llama2_chat(messages, tokenizer);
  };
  CHECK_THROWS_AS(encode({}), DataError);
  CHECK_THROWS_AS(encode({{"system", "x"}}), DataError);
  CHECK_THROWS_AS(encode({{"assistant", "x"}}), DataError);
  CHECK_THROWS_AS(encode({{"user", "x"}, {"user", "y"}}), DataError);
  CHECK_THROWS_AS(encode({{"user", "x"}, {"assistant", "y"}, {"system", "z"}}), DataError);
  CHECK_THROWS_AS(encode({{"tool", "x"}}), DataError);
  for (const char* tag : {"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"}) {
    CHECK_THROWS_AS(encode({{"user", std::string("a ") + tag}}), DataError);
    CHECK_THROWS_AS(encode({{"system", tag}, {"user", "a"}}), DataError);
    CHECK_THROWS_AS(encode({{"user", "a"}, {"assistant", tag}}), DataError);
  }
}

TEST_CASE("strip removes what Python's str.strip removes", "[data]") {
  CHECK(data::strip(" \t\r\n a b \v\f") == "a b");
  CHECK(data::strip("\u3000\u00a0\u2003裤子\u2029\u0085") == "裤子");
  CHECK(data::strip("\u200bx").size() == 4);  // zero-width space is no white space there
  CHECK(data::strip("") == "");
  CHECK(data::strip(" \u3000 ") == "");
}
