#include "data/row_encoder.h"
#include "lora/core/error.h"
#include "lora/data/dataset.h"
#include "lora/data/glm_adgen.h"
#include "lora/data/glm_chat.h"
#include "lora/data/glm_tokenizer.h"
#include "support.h"

using namespace lora;
using formats::Json;

namespace {

constexpr int32_t kNo = -100, kPad = 3, kGmask = 7, kSop = 8, kEop = 9;
using Ids = std::vector<int32_t>;

/// One token per byte, of its own number, after ChatGLM's special tokens.
class ByteGlmTokenizer : public data::Tokenizer {
 public:
  std::vector<int64_t> encode(std::string_view text) const override {
    std::vector<int64_t> ids;
    for (const char byte : text) ids.push_back(byte == '@' ? kPad : static_cast<unsigned char>(byte));
    return ids;
  }
  std::string decode(std::span<const int64_t>) const override { return {}; }
  std::string piece(int64_t id) const override { return std::to_string(id); }
  int64_t vocab_size() const override { return 256; }
  int64_t bos_id() const override { return kSop; }
  int64_t eos_id() const override { return kEop; }
  int64_t pad_id() const override { return kPad; }
  std::optional<data::GlmIds> glm_ids() const override {
    return data::GlmIds{.mask = 6, .gmask = kGmask, .sop = kSop, .eop = kEop};
  }
};

const ByteGlmTokenizer kTokenizer;

Ids bytes(std::string_view text) {
  Ids ids;
  for (const char byte : text) ids.push_back(static_cast<unsigned char>(byte));
  return ids;
}

Ids joined(std::initializer_list<Ids> parts) {
  Ids all;
  for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

data::Example adgen(const data::TextPair& text, const data::GlmAdgenOptions& options) {
  return data::encode_glm_adgen(text, kTokenizer, options).example;
}

data::EncodedRow encode(const std::string& format, const Json& row, data::DatasetOptions options = {}) {
  options.format = format;
  return data::RowEncoder(options, &kTokenizer).encode(row);
}

}  // namespace

TEST_CASE("an adgen row of a ChatGLM is the worked example of its recipe", "[data][glm]") {
  // Five tokens of prompt, three of answer: p p p p p g s a a a e, the labels (shifted) -100 x 6, a, a, a, e.
  const auto row = adgen({"ppppp", "abc"}, {.max_source_length = 8, .max_target_length = 8});
  CHECK(row.input_ids == joined({bytes("ppppp"), {kGmask, kSop}, bytes("abc"), {kEop}}));
  CHECK(row.labels == joined({Ids(7, kNo), bytes("abc"), {kEop}}));
  CHECK(row.num_targets() == 4);
}

TEST_CASE("<sop> is a target when it is asked for", "[data][glm]") {
  const auto row = adgen({"pp", "a"}, {.train_on_sop = true});
  CHECK(row.labels == Ids{kNo, kNo, kNo, kSop, 'a', kEop});
}

TEST_CASE("padding is no target, wherever it comes from, unless it is asked for", "[data][glm]") {
  const data::GlmAdgenOptions ignored{.max_source_length = 4, .max_target_length = 6};
  CHECK(adgen({"p@", "a@b"}, ignored).input_ids == Ids{'p', kPad, kGmask, kSop, 'a', kPad, 'b', kEop});
  CHECK(adgen({"p@", "a@b"}, ignored).labels == Ids{kNo, kNo, kNo, kNo, 'a', kNo, 'b', kEop});
  auto counted = ignored;
  counted.ignore_pad_in_loss = false;
  CHECK(adgen({"p@", "a@b"}, counted).input_ids == Ids{'p', kPad, kGmask, kSop, 'a', kPad, 'b', kEop, kPad, kPad});
  CHECK(adgen({"p@", "a@b"}, counted).labels == Ids{kNo, kNo, kNo, kNo, 'a', kPad, 'b', kEop, kPad, kPad});
}

TEST_CASE("prompt and answer are cut to leave room for the special tokens", "[data][glm]") {
  const data::GlmAdgenOptions limits{.max_source_length = 4, .max_target_length = 5};
  CHECK(adgen({"pqrst", "abcd"}, limits).input_ids == Ids{'p', 'q', 'r', kGmask, kSop, 'a', 'b', 'c', kEop});
  const auto fits = data::encode_glm_adgen({"pqr", "abc"}, kTokenizer, limits);
  CHECK_FALSE(fits.prompt_is_cut(limits));
  CHECK_FALSE(fits.answer_is_cut(limits));

  data::DatasetOptions options{.max_source_length = 4, .max_target_length = 5};
  CHECK(encode("adgen", {{"content", "pqrs"}, {"summary", "a"}}, options).truncated);
  CHECK(encode("adgen", {{"content", "p"}, {"summary", "abcd"}}, options).truncated);
  CHECK_FALSE(encode("adgen", {{"content", "pqr"}, {"summary", "abc"}}, options).truncated);
  options.truncate_long = false;
  CHECK_NOTHROW(encode("adgen", {{"content", "pqr"}, {"summary", "abc"}}, options));
  CHECK_THROWS_AS(encode("adgen", {{"content", "pqrs"}, {"summary", "a"}}, options), DataError);
  CHECK_THROWS_AS(encode("adgen", {{"content", "p"}, {"summary", "abcd"}}, options), DataError);
  options.max_target_length = 2;
  CHECK_THROWS_AS(encode("adgen", {{"content", "p"}, {"summary", "a"}}, options), ConfigError);
}

TEST_CASE("earlier rounds of an adgen row are in its prompt", "[data][glm]") {
  data::DatasetOptions options{.max_source_length = 500};
  const auto prompt = [&](const Json& history) {
    return encode("adgen", {{"content", "q"}, {"summary", "a"}, {"history", history}}, options).text.value().prompt;
  };
  CHECK(prompt(nullptr) == "q");
  CHECK(prompt(Json::array()) == "[Round 0]\n问：q\n答：");
  CHECK(prompt(Json::array({Json::array({"x", "y"}), Json::array({"z", "w"})})) ==
        "[Round 0]\n问：x\n答：y\n[Round 1]\n问：z\n答：w\n[Round 2]\n问：q\n答：");
  CHECK_THROWS_AS(prompt(Json::array({Json::array({"x"})})), DataError);
}

TEST_CASE("a row for generating is cut by characters and filled up", "[data][glm]") {
  // 问 has three bytes: two characters are six tokens here.
  const auto row = data::encode_glm_adgen_eval({"问问问", "ab问c"}, kTokenizer, 4, 5);
  using Wide = std::vector<int64_t>;
  const Wide ask = kTokenizer.encode("问");
  Wide prompt = ask;
  prompt.insert(prompt.end(), ask.begin(), ask.end());
  prompt.insert(prompt.end(), {kGmask, kSop});
  CHECK(row.input_ids == prompt);  // eight tokens are more than the four: not filled up, not cut
  CHECK(row.reference_ids == Wide{'a', 'b', ask[0], ask[1], ask[2], kGmask, kSop});
  CHECK(data::encode_glm_adgen_eval({"pq", "a"}, kTokenizer, 6, 5).input_ids == Wide{'p', 'q', kGmask, kSop, kPad, kPad});
}

TEST_CASE("chat prompts of ChatGLM number their rounds", "[data][glm]") {
  CHECK(data::glm_chat_prompt({}, "hi") == "hi");
  const std::vector<data::Exchange> history = {{"q0", "a0"}};
  CHECK(data::glm_chat_prompt(history, "q1") == "[Round 0]\n问：q0\n答：a0\n[Round 1]\n问：q1\n答：");
}

TEST_CASE("the last answer of a conversation is what it teaches", "[data][glm]") {
  const auto chat = [](std::vector<data::Message> messages) { return data::encode_chat(messages, kTokenizer); };
  const auto first = chat({{"user", "q"}, {"assistant", "a"}});
  CHECK(first.input_ids == Ids{'q', kGmask, kSop, 'a', kEop});
  CHECK(first.labels == Ids{kNo, kNo, kNo, 'a', kEop});
  CHECK(chat({{"user", "q"}, {"assistant", "a"}, {"user", "left out"}}).input_ids == first.input_ids);
  const auto second = chat({{"system", "be"}, {"user", "q"}, {"assistant", "a"}, {"user", "r"}, {"assistant", "b"}});
  CHECK(second.input_ids == joined({bytes("[Round 0]\n问：be\nq\n答：a\n[Round 1]\n问：r\n答："), {kGmask, kSop, 'b', kEop}}));
  CHECK(second.num_targets() == 2);
  CHECK(chat({{"user", "q"}}).input_ids == Ids{'q', kGmask, kSop});
  CHECK_THROWS_AS(chat({{"assistant", "a"}}), DataError);
  CHECK_THROWS_AS(chat({}), DataError);
}

TEST_CASE("a ChatGLM takes other templates, whose last answer is what they teach", "[data][glm]") {
  const formats::PromptTemplate form{.user = "Q{content}A", .assistant = " {content}{eos}~"};
  const auto row = data::encode_chat({{"user", "q"}, {"assistant", "a"}, {"user", "r"}, {"assistant", "b"}, {"user", "left out"}},
                                     kTokenizer, form);
  CHECK(row.input_ids == joined({bytes("QqA a~QrA"), {kGmask, kSop, ' ', 'b', kEop}}));
  CHECK(row.num_targets() == 3);
  CHECK(data::encode_chat({{"user", "q"}}, kTokenizer, form).input_ids == joined({bytes("QqA"), {kGmask, kSop}}));
  CHECK(data::model_template(kTokenizer).name == "chatglm");
}

TEST_CASE("the other formats give rows of a ChatGLM, too", "[data][glm]") {
  const Ids expected = {'q', kGmask, kSop, 'a', kEop};
  CHECK(encode("completion", {{"prompt", "q"}, {"completion", "a"}}).example.input_ids == expected);
  CHECK(encode("alpaca", {{"instruction", "q"}, {"output", "a"}}).example.input_ids == expected);
  CHECK(encode("alpaca", {{"instruction", "q"}, {"input", "i"}, {"output", "a"}}).example.input_ids ==
        Ids{'q', '\n', 'i', kGmask, kSop, 'a', kEop});
  const Json question = {{"role", "user"}, {"content", "q"}}, answer = {{"role", "assistant"}, {"content", "a"}};
  CHECK(encode("chat", {{"messages", Json::array({question, answer})}}).example.input_ids == expected);
  CHECK_THROWS_AS(encode("chat", {{"messages", Json::array({question})}}), DataError);
}

TEST_CASE("rows that a ChatGLM cannot place are refused by their number", "[data][glm]") {
  const testing::ScratchFolder folder;
  const auto refused = [&](const std::string& row) {
    const Path file = folder.write("rows.jsonl", "{\"input_ids\": [5, 7, 8, 5, 9]}\n" + row + "\n");
    return testing::message_of<DataError>([&] { data::load_dataset(file, {.format = "tokens"}, &kTokenizer); });
  };
  CHECK(refused(R"({"input_ids": [5, 7, 8, 5, 8, 9]})").find("rows.jsonl:2] a row of a ChatGLM must have one <sop>; found 2") !=
        std::string::npos);
  CHECK(refused(R"({"input_ids": [5, 7, 5, 9]})").find("one <sop>; found 0") != std::string::npos);
  CHECK(refused(R"({"input_ids": [5, 8, 7, 9]})").find("before its <sop>") != std::string::npos);
  CHECK(refused(R"({"input_ids": [7, 8, 9], "labels": [-100, -100, -100]})").find("a target") != std::string::npos);
  const Path text = folder.write("text.txt", "words");
  CHECK_THROWS_AS(data::load_dataset(text, {.format = "text"}, &kTokenizer), ConfigError);
}
