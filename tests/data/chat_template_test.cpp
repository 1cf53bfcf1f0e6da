#include "lora/data/chat_template.h"

#include "data/small_tokenizer.h"
#include "data/strip.h"
#include "formats/json.h"
#include "lora/core/error.h"
#include "lora/core/file.h"

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
  const testing::ByteTokenizer tokenizer;
  const data::Example example =
      data::encode_chat({{"user", " hi \n"}, {"assistant", "\tyes "}, {"user", "bye"}, {"assistant", "ok"}}, tokenizer);
  CHECK(all_text(example) == "<s>[INST] hi [/INST] yes </s><s>[INST] bye [/INST] ok </s>");
  CHECK(target_text(example) == "__________________ yes </s>___________________ ok </s>");
  CHECK(example.num_targets() == 11);
}

TEST_CASE("the system text is folded into the first user message", "[data]") {
  const testing::ByteTokenizer tokenizer;
  const data::Example example = data::encode_chat({{"system", "be brief"}, {"user", "hi"}, {"assistant", "yes"}}, tokenizer);
  CHECK(all_text(example) == "<s>[INST] <<SYS>>\nbe brief\n<</SYS>>\n\nhi [/INST] yes </s>");
}

TEST_CASE("a last question without an answer ends the prompt", "[data]") {
  const testing::ByteTokenizer tokenizer;
  const data::Example example = data::encode_chat({{"user", "hi"}}, tokenizer);
  CHECK(all_text(example) == "<s>[INST] hi [/INST]");
  CHECK(example.num_targets() == 0);
}

TEST_CASE("with SentencePiece a turn equals the turn encoded in one piece", "[data]") {
  const auto tokenizer = testing::small_tokenizer();
  const data::Example example = data::encode_chat({{"user", "who sat on the mat"}, {"assistant", "a small cat"}}, *tokenizer);
  std::vector<int64_t> whole = tokenizer->encode("[INST] who sat on the mat [/INST] a small cat ");
  whole.insert(whole.begin(), tokenizer->bos_id());
  whole.push_back(tokenizer->eos_id());
  CHECK(std::vector<int64_t>(example.input_ids.begin(), example.input_ids.end()) == whole);
}

TEST_CASE("conversations that are none are refused", "[data]") {
  const testing::ByteTokenizer tokenizer;
  const auto encode = [&](const std::vector<Message>& messages) { return data::encode_chat(messages, tokenizer); };
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

TEST_CASE("vicuna's template is one text of turns that end tokens part", "[data]") {
  const testing::ByteTokenizer tokenizer;
  const auto form = formats::prompt_template("vicuna");
  const std::string polite =
      "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
      "answers to the user's questions.";
  const auto example =
      data::encode_chat({{"user", "hi"}, {"assistant", "yes"}, {"user", "bye"}, {"assistant", "ok"}}, tokenizer, form);
  CHECK(all_text(example) == "<s>" + polite + " USER: hi ASSISTANT: yes</s>USER: bye ASSISTANT: ok</s>");
  CHECK(example.num_targets() == 5 + 4);
  const auto brief = data::encode_chat({{"system", "Be brief."}, {"user", "hi"}}, tokenizer, form);
  CHECK(all_text(brief) == "<s>Be brief. USER: hi ASSISTANT:");
  CHECK(brief.num_targets() == 0);
}

TEST_CASE("chatglm's template numbers rounds and teaches the last answer, with any tokenizer", "[data]") {
  const testing::ByteTokenizer tokenizer;
  const auto form = formats::prompt_template("chatglm");
  CHECK(all_text(data::encode_chat({{"user", "hi"}, {"assistant", "yes"}}, tokenizer, form)) == "<s>hiyes</s>");
  const auto second =
      data::encode_chat({{"user", "hi"}, {"assistant", "yes"}, {"user", "bye"}, {"assistant", "ok"}}, tokenizer, form);
  CHECK(tokenizer.decode(std::vector<int64_t>(second.input_ids.begin(), second.input_ids.end())) ==
        "[Round 0]\n问：hi\n答：yes\n[Round 1]\n问：bye\n答：ok");
  CHECK(second.num_targets() == 3);
}

TEST_CASE("a template of one's own says where every text and token stands", "[data]") {
  const testing::ByteTokenizer tokenizer;
  const formats::PromptTemplate form{.prefix = "{bos}<",
                                     .system = "S={content};",
                                     .user = "{round}:{content}?{eos}",
                                     .assistant = "{bos}{content}!{eos}~",
                                     .default_system = "be {content}"};
  const auto example =
      data::encode_chat({{"user", " {content} "}, {"assistant", "A"}, {"user", "B"}, {"assistant", "C"}}, tokenizer, form);
  // What somebody says is never a place; what follows the end token is not learned; white space stays without `strip`.
  CHECK(all_text(example) == "<s><S=be {content};0: {content} ?</s><s>A!</s>~1:B?</s><s>C!</s>~");
  CHECK(target_text(example) == "________________________________<s>A!</s>______<s>C!</s>_");
}

TEST_CASE("an answer is encoded as it reads behind its question", "[data]") {
  const auto tokenizer = testing::small_tokenizer();
  const auto ids_of_row = [&](const std::string& user, const std::string& assistant) {
    const formats::PromptTemplate form{.prefix = "", .user = user, .assistant = assistant};
    const auto example = data::encode_chat({{"user", "who sat"}, {"assistant", "a small cat"}}, *tokenizer, form);
    return std::vector<int64_t>(example.input_ids.begin(), example.input_ids.end());
  };
  CHECK(ids_of_row("Q: {content}", " {content}") == tokenizer->encode("Q: who sat a small cat"));
  CHECK(ids_of_row("Q: {content}\nA:\n", "{content}") == tokenizer->encode("Q: who sat\nA:\na small cat"));
  CHECK(ids_of_row("Q: {content}\n", "  {content}") == tokenizer->encode("Q: who sat\n  a small cat"));
}

TEST_CASE("rows of templates are those of the reference implementations", "[data]") {
  const auto tokenizer = data::load_tokenizer(testing::reference_folder() / "../../quickstart/base/tokenizer.model");
  const auto file = testing::reference_folder() / "chat_templates/expected.json";
  for (const auto& one : formats::parse_json(read_file(file), file.string())) {
    std::vector<Message> messages;
    for (const auto& message : one.at("messages")) messages.push_back({message.at("role"), message.at("content")});
    const auto form = formats::prompt_template(one.at("template").get<std::string>());
    INFO(one.at("template") << " " << one.at("messages"));
    const auto example = data::encode_chat(messages, *tokenizer, form);
    CHECK(example.input_ids == one.at("input_ids").get<std::vector<int32_t>>());
    CHECK(example.labels == one.at("labels").get<std::vector<int32_t>>());
  }
}

TEST_CASE("strip removes what Python's str.strip removes", "[data]") {
  CHECK(data::strip(" \t\r\n a b \v\f") == "a b");
  CHECK(data::strip("\u3000\u00a0\u2003裤子\u2029\u0085") == "裤子");
  CHECK(data::strip("\u200bx").size() == 4);  // zero-width space is no white space there
  CHECK(data::strip("") == "");
  CHECK(data::strip(" \u3000 ") == "");
}
