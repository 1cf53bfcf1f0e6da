#include "lora/data/dataset.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "data/small_tokenizer.h"
#include "lora/core/error.h"

using namespace lora;
using data::Dataset;
using data::DatasetOptions;

namespace {

using Ids = std::vector<int32_t>;

/// Ids of the byte tokenizer for readable text: '^' is <s>, '$' is </s>.
Ids ids_of(std::string_view text) {
  Ids ids;
  for (const char byte : text) ids.push_back(byte == '^' ? 1 : byte == '$' ? 2 : byte + 3);
  return ids;
}

/// Labels: those of ids_of, '_' for masked positions.
Ids labels_of(std::string_view text) {
  Ids labels = ids_of(text);
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '_') labels[i] = data::kIgnoreLabel;
  }
  return labels;
}

struct Folder : testing::ScratchFolder {
  Dataset load(std::string_view text, const DatasetOptions& options, std::string_view name = "x.jsonl") const {
    const testing::ByteTokenizer tokenizer;
    return data::load_dataset(write(name, text), options, &tokenizer);
  }
};

}  // namespace

TEST_CASE("adgen rows are prompt and answer, each within its limit", "[data]") {
  const Folder folder;
  const std::string text = R"({"content": "ab", "summary": "cde"})"
                           "\n\n"
                           R"({"content": "abcdefgh", "summary": "uvwxyz"})"
                           "\r\n";
  const Dataset dataset =
      folder.load(text, {.format = "adgen", .max_source_length = 5, .max_target_length = 4, .keep_text_pairs = 1});
  REQUIRE(dataset.size() == 2);
  CHECK(dataset.example(0).input_ids == ids_of("^abcde$"));
  CHECK(dataset.example(0).labels == labels_of("___cde$"));
  CHECK(dataset.example(0).row == 1);
  CHECK(dataset.example(0).num_targets() == 4);
  // Both parts are cut; the end is taught all the same.
  CHECK(dataset.example(1).input_ids == ids_of("^abcduvw$"));
  CHECK(dataset.example(1).labels == labels_of("_____uvw$"));
  CHECK(dataset.example(1).row == 3);
  CHECK(dataset.num_rows == 2);
  CHECK(dataset.num_truncated == 1);
  REQUIRE(dataset.text_pairs.size() == 1);
  CHECK(dataset.text_pairs[0].prompt == "ab");
  CHECK(dataset.text_pairs[0].response == "cde");
}

TEST_CASE("other columns, and the short form for adgen", "[data]") {
  const Folder folder;
  const Dataset renamed = folder.load(R"({"q": "a", "a": "b", "more": [1]})", {.prompt_column = "q", .response_column = "a"});
  CHECK(renamed.example(0).input_ids == ids_of("^ab$"));
  const testing::ByteTokenizer tokenizer;
  const Path file = folder.write("adgen.json", R"({"content": "abc", "summary": "defg"})");
  const Dataset dataset = data::adgen(file, tokenizer, {.max_source = 2, .max_target = 3});
  CHECK(dataset.example(0).input_ids == ids_of("^ade$"));
}

TEST_CASE("completion rows share one limit and are cut at the end", "[data]") {
  const Folder folder;
  const std::string text = R"({"prompt": "ab", "completion": "cdefg"})";
  CHECK(folder.load(text, {.format = "completion"}).example(0).labels == labels_of("___cdefg$"));
  const Dataset cut = folder.load(text, {.format = "completion", .max_length = 5});
  CHECK(cut.example(0).input_ids == ids_of("^abcd"));
  CHECK(cut.num_truncated == 1);
  CHECK_THROWS_AS(folder.load(text, {.format = "completion", .max_length = 3}), DataError);
  CHECK_THROWS_AS(folder.load(text, {.format = "completion", .max_length = 5, .truncate_long = false}), DataError);
  CHECK_THROWS_AS(folder.load(R"({"content": "ab", "summary": "cdefg"})", {.max_target_length = 5, .truncate_long = false}),
                  DataError);
}

TEST_CASE("alpaca rows go through the chat template", "[data]") {
  const Folder folder;
  const auto first = [&](const std::string& text) { return folder.load(text, {.format = "alpaca"}).example(0).input_ids; };
  CHECK(first(R"({"instruction": "do", "output": "ok"})") == ids_of("^[INST] do [/INST] ok $"));
  CHECK(first(R"({"instruction": "do", "input": "", "output": "ok", "system": ""})") == ids_of("^[INST] do [/INST] ok $"));
  CHECK(first(R"({"instruction": "do", "input": "this", "output": "ok"})") == ids_of("^[INST] do\nthis [/INST] ok $"));
  CHECK(first(R"({"instruction": "c", "output": "d", "system": "S", "history": [["a", "b"]]})") ==
        ids_of("^[INST] <<SYS>>\nS\n<</SYS>>\n\na [/INST] b $^[INST] c [/INST] d $"));
}

TEST_CASE("chat rows of both kinds", "[data]") {
  const Folder folder;
  const Ids expected = ids_of("^[INST] a [/INST] b $^[INST] c [/INST] d $");
  const Dataset messages = folder.load(R"({"messages": [{"role":"user","content":"a"},{"role":"assistant","content":"b"},)"
                                       R"({"role":"user","content":"c"},{"role":"assistant","content":"d"}]})",
                                       {.format = "chat", .keep_text_pairs = 5});
  CHECK(messages.example(0).input_ids == expected);
  CHECK(messages.text_pairs.at(0).prompt == "c");
  CHECK(messages.text_pairs.at(0).response == "d");
  const Dataset conversations = folder.load(R"({"conversations": [{"from":"human","value":"a"},{"from":"gpt","value":"b"},)"
                                            R"({"from":"user","value":"c"},{"from":"assistant","value":"d"}]})",
                                            {.format = "chat"});
  CHECK(conversations.example(0).input_ids == expected);
  const Dataset system = folder.load(R"({"messages": [{"role":"system","content":"S"},{"role":"user","content":"a"},)"
                                     R"({"role":"assistant","content":"b"}]})",
                                     {.format = "chat"});
  CHECK(system.example(0).input_ids == ids_of("^[INST] <<SYS>>\nS\n<</SYS>>\n\na [/INST] b $"));
}

TEST_CASE("conversations are written in the template that is asked for", "[data]") {
  const Folder folder;
  const std::string row =
      R"({"conversations": [{"from":"human","value":"a"},{"from":"gpt","value":"b"},{"from":"human","value":"c"},{"from":"gpt","value":"dd"}]})";
  DatasetOptions options{
      .format = "sharegpt", .prompt_template = formats::PromptTemplate{.user = "Q{round}{content}:"}, .keep_text_pairs = 1};
  const Dataset whole = folder.load(row, options);
  CHECK(whole.example(0).input_ids == ids_of("^Q0a:b$Q1c:dd$"));
  CHECK(whole.example(0).labels == labels_of("_____b$____dd$"));
  CHECK(whole.text_pairs.at(0).response == "dd");
  // Cut behind the first answer, what is shown is the exchange that is there.
  options.max_length = 9;
  const Dataset cut = folder.load(row, options);
  CHECK(cut.example(0).input_ids == ids_of("^Q0a:b$Q1"));
  CHECK(cut.text_pairs.at(0).prompt == "a");
  CHECK(cut.text_pairs.at(0).response == "b");
}

TEST_CASE("the input of an alpaca row stands where the template has it", "[data]") {
  const Folder folder;
  const auto text = [&](const std::string& row) {
    const testing::ByteTokenizer tokenizer;
    const auto ids =
        folder.load(row, {.format = "alpaca", .prompt_template = formats::prompt_template("alpaca")}).example(0).input_ids;
    return tokenizer.decode(std::vector<int64_t>(ids.begin(), ids.end()));
  };
  CHECK(text(R"({"instruction": "do", "output": "ok"})") ==
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\ndo\n\n### Response:\nok");
  CHECK(
      text(R"({"instruction": "do", "input": "this", "output": "ok"})") ==
      "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that "
      "appropriately completes the request.\n\n### Instruction:\ndo\n\n### Input:\nthis\n\n### Response:\nok");
  CHECK(text(R"({"instruction": "do", "input": "this", "output": "ok", "system": "S"})").starts_with("S\n\n### Instruction:"));
}

TEST_CASE("token rows are taken as they are", "[data]") {
  const testing::ScratchFolder folder;
  const auto load = [&](const std::string& text, const DatasetOptions& options) {
    return data::load_dataset(folder.write("x.jsonl", text), options, nullptr);
  };
  const DatasetOptions options{.format = "tokens", .vocab_size = 10};
  const Dataset dataset = load(
      "{\"input_ids\": [1, 2, 3], \"labels\": [-100, -100, 3]}\n{\"input_ids\": [9, 0], "
      "\"labels\": null}\n"
      "{\"input_ids\": [4]}\n",
      options);
  REQUIRE(dataset.size() == 3);
  CHECK(dataset.example(0).labels == Ids{-100, -100, 3});
  CHECK(dataset.example(1).labels == Ids{9, 0});
  CHECK(dataset.example(2).num_targets() == 0);
  for (const char* bad :
       {R"({"input_ids": []})", R"({"input_ids": [10]})", R"({"input_ids": [-1]})", R"({"input_ids": [1.0]})",
        R"({"input_ids": ["1"]})", R"({"input_ids": [true]})", R"({"input_ids": 3})", R"({"labels": [1]})",
        R"({"input_ids": [99999999999]})", R"({"input_ids": [18446744073709551615]})", R"({"input_ids": [-9223372036854775808]})",
        R"({"input_ids": [-100]})", R"({"input_ids": [1, 2], "labels": [1]})", R"({"input_ids": [1, 2], "labels": [1, 3]})",
        R"({"input_ids": [1, 2], "labels": [1, -1]})", R"({"input_ids": [1, 2], "labels": [1, 2, 3]})", R"([1, 2])", R"(7)"}) {
    INFO(bad);
    CHECK_THROWS_AS(load(std::string("{\"input_ids\": [1]}\n") + bad, options), DataError);
  }
  const Dataset cut = load(R"({"input_ids": [1, 2, 3, 4]})", {.format = "tokens", .max_length = 3});
  CHECK(cut.example(0).input_ids == Ids{1, 2, 3});
  CHECK(cut.num_truncated == 1);
  CHECK_THROWS_AS(load(R"({"input_ids": [1, 2, 3, 4]})", {.format = "tokens", .max_length = 3, .truncate_long = false}),
                  DataError);
  CHECK_THROWS_AS(load(R"({"input_ids": [1, 2, 3, 99]})", {.format = "tokens", .max_length = 3, .vocab_size = 10}), DataError);
}

TEST_CASE("a JSON array of rows is read like lines", "[data]") {
  const Folder folder;
  const Dataset dataset = folder.load(
      "\xef\xbb\xbf\n  [ {\"prompt\": \"a\", \"completion\": \"b\"},\n"
      "{\"prompt\": \"\", \"completion\": \"b\"},\n {\"prompt\": \"c\", \"completion\": \"d\"} ]\n",
      {.format = "completion", .skip_bad_rows = true}, "x.json");
  REQUIRE(dataset.size() == 2);
  CHECK(dataset.example(1).input_ids == ids_of("^cd$"));
  CHECK(dataset.example(1).row == 3);
  CHECK(dataset.num_bad_rows == 1);
  CHECK(dataset.bad_row_reasons.at(0).find("element 2") != std::string::npos);
  CHECK_THROWS_AS(folder.load("[{\"prompt\": ", {.format = "completion"}), FormatError);
}

TEST_CASE("the first bad row stops with file and line, or is left out and counted", "[data]") {
  const Folder folder;
  std::string text = "{\"prompt\": \"a\", \"completion\": \"b\"}\nnot json\n";
  for (int i = 0; i < 12; ++i)
    text += R"({"prompt": "a"})"
            "\n";
  text += R"({"prompt": "c", "completion": "d"})";
  const std::string message = testing::message_of<DataError>([&] { folder.load(text, {.format = "completion"}); });
  CHECK(message.find("x.jsonl:2") != std::string::npos);
  const Dataset dataset = folder.load(text, {.format = "completion", .skip_bad_rows = true});
  CHECK(dataset.size() == 2);
  CHECK(dataset.num_rows == 15);
  CHECK(dataset.num_bad_rows == 13);
  REQUIRE(dataset.bad_row_reasons.size() == 10);
  CHECK(dataset.bad_row_reasons[1].find("x.jsonl:3") != std::string::npos);
  CHECK(dataset.bad_row_reasons[1].find("completion") != std::string::npos);
  CHECK(dataset.example(1).row == 15);
}

TEST_CASE("rows with a field missing, empty or of another type are bad", "[data]") {
  const Folder folder;
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"adgen", R"({"content": "", "summary": "x"})"},
      {"adgen", R"({"content": "x", "summary": " \n"})"},
      {"adgen", R"({"content": "x"})"},
      {"adgen", R"({"content": "x", "summary": null})"},
      {"adgen", R"({"content": "x", "summary": 5})"},
      {"completion", R"({"prompt": ["x"], "completion": "y"})"},
      {"completion", R"("text")"},
      {"completion", "{\"prompt\": \"x\", \"prompt\": \"z\", \"completion\": \"y\"}"},
      {"completion", "{\"prompt\": \"\xff\", \"completion\": \"y\"}"},
      {"alpaca", R"({"instruction": "x", "output": ""})"},
      {"alpaca", R"({"instruction": "x", "output": "y", "input": 3})"},
      {"alpaca", R"({"instruction": "x", "output": "y", "history": [["a"]]})"},
      {"alpaca", R"({"instruction": "x", "output": "y", "history": "a"})"},
      {"alpaca", R"({"instruction": "[INST]", "output": "y"})"},
      {"chat", R"({"messages": []})"},
      {"chat", R"({"messages": [{"role": "user", "content": "x"}]})"},
      {"chat", R"({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]})"},
      {"chat", R"({"messages": [{"role": "user"}]})"},
      {"chat", R"({"messages": ["x"]})"},
      {"chat", R"({"messages": {"role": "user"}})"},
      {"chat", R"({"text": "x"})"},
      {"sharegpt", R"({"conversations": []})"},
      {"sharegpt", R"({"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]})"},
      {"sharegpt", R"({"conversations": [{"from": "human", "value": "x"}, {"from": "bard", "value": "y"}]})"},
      {"sharegpt", R"({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt"}]})"},
      {"sharegpt", R"({"conversations": [{"from": "human", "value": "x"}, {"from": "human", "value": "y"}]})"},
      {"sharegpt", R"({"conversations": [{"from": "system", "value": "x"}]})"},
      {"sharegpt", R"({"conversations": "x"})"},
  };
  for (const auto& [format, row] : cases) {
    INFO(format << ": " << row);
    CHECK_THROWS_AS(folder.load(row, {.format = format}), DataError);
  }
}

TEST_CASE("ids of the tokenizer beyond the model's vocabulary are refused", "[data]") {
  const Folder folder;
  const std::string row = R"({"prompt": "a", "completion": "b"})";
  CHECK_NOTHROW(folder.load(row, {.format = "completion", .vocab_size = 'b' + 4}));
  CHECK_THROWS_AS(folder.load(row, {.format = "completion", .vocab_size = 'b' + 3}), DataError);
}

TEST_CASE("documents are joined and cut into blocks", "[data]") {
  const Folder folder;
  const Dataset dataset = folder.load("{\"text\": \"abc\"}\n{\"text\": \"defg\"}\n", {.format = "text", .max_length = 4});
  REQUIRE(dataset.size() == 3);  // ^abc $^de fg$
  CHECK(dataset.example(0).input_ids == ids_of("^abc"));
  CHECK(dataset.example(1).input_ids == ids_of("$^de"));
  CHECK(dataset.example(2).input_ids == ids_of("fg$"));
  CHECK(dataset.example(2).labels == ids_of("fg$"));
  CHECK(dataset.example(2).row == 3);
  CHECK(dataset.num_rows == 2);
  // 9 tokens: the block of one token has no target and is left out.
  CHECK(folder.load("{\"text\": \"abcdefg\"}", {.format = "text", .max_length = 4}).size() == 2);

  const Dataset plain = folder.load("ab\ncd\n", {.format = "text"}, "x.txt");
  CHECK(plain.example(0).input_ids == ids_of("^ab\ncd\n$"));
  CHECK(plain.num_rows == 1);
  const std::string message =
      testing::message_of<DataError>([&] { folder.load("ok\nbad \xff byte\n", {.format = "text"}, "x.txt"); });
  CHECK(message.find("x.txt:2") != std::string::npos);
  CHECK_THROWS_AS(folder.load("{\"text\": \"\"}", {.format = "text"}), DataError);
}

TEST_CASE("sets without rows and options that make no sense are refused", "[data]") {
  const Folder folder;
  const testing::ByteTokenizer tokenizer;
  CHECK_THROWS_AS(data::load_dataset(folder / "missing.json", {}, &tokenizer), IoError);
  CHECK_THROWS_AS(data::load_dataset(folder.path(), {}, &tokenizer), IoError);
  CHECK_THROWS_AS(folder.load("", {}), DataError);
  CHECK_THROWS_AS(folder.load("\n \n", {}), DataError);
  CHECK_THROWS_AS(folder.load("[]", {}), DataError);
  CHECK_THROWS_AS(folder.load("", {.format = "text"}, "x.txt"), DataError);
  CHECK_THROWS_AS(folder.load("nothing\n", {.skip_bad_rows = true}), DataError);
  const std::string row = R"({"content": "a", "summary": "b"})";
  CHECK_NOTHROW(folder.load(row, {}));
  CHECK_THROWS_AS(folder.load(row, {.format = "csv"}), ConfigError);
  CHECK_THROWS_AS(folder.load(row, {.max_source_length = 0}), ConfigError);
  CHECK_THROWS_AS(folder.load(row, {.max_target_length = 0}), ConfigError);
  CHECK_THROWS_AS(folder.load(row, {.max_length = 1}), ConfigError);
  CHECK_THROWS_AS(data::load_dataset(folder.write("x", row), {}, nullptr), ConfigError);
}

TEST_CASE("real data sets are read whole", "[data]") {
  const auto folder = testing::outside_data("data");
  if (!folder) return;
  const auto tokenizer = data::load_sentencepiece(*folder / "stories260K/tok512.model");
  const Dataset adgen = data::load_dataset(
      *folder / "adgen/dev.json", {.max_source_length = 64, .max_target_length = 64, .vocab_size = 512}, tokenizer.get());
  CHECK(adgen.size() == 1070);
  for (int64_t row = 0; row < adgen.size(); ++row) {
    const data::Example example = adgen.example(row);
    CHECK(adgen.length(row) == static_cast<int64_t>(example.input_ids.size()));
    CHECK(example.input_ids.size() <= 128);
    CHECK(example.labels.back() == tokenizer->eos_id());
  }
  const Path novel = *folder / "public_domain_text/tinyshakespeare.txt";
  const Dataset text = data::load_dataset(novel, {.format = "text", .max_length = 256}, tokenizer.get());
  std::vector<int64_t> ids;
  for (int64_t row = 0; row < text.size(); ++row) {
    const data::Example example = text.example(row);
    ids.insert(ids.end(), example.input_ids.begin(), example.input_ids.end());
  }
  const std::string decoded = tokenizer->decode(ids);
  CHECK(decoded.size() == std::filesystem::file_size(novel));
}

TEST_CASE("rows that a set cannot hold are refused", "[data]") {
  Dataset dataset;
  CHECK_THROWS_AS(dataset.add({.input_ids = {5, 6}, .labels = {5}, .row = 3}), DataError);
  CHECK_THROWS_AS(dataset.add({.input_ids = {}, .labels = {}}), DataError);
  CHECK_THROWS_AS(dataset.add({.input_ids = {5}, .labels = {6}}), DataError);
  CHECK_THROWS_AS(dataset.add({.input_ids = {-1}, .labels = {-1}}), DataError);
  CHECK(dataset.size() == 0);
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  dataset.add({.input_ids = {0, kMost, 0}, .labels = {-100, kMost, 0}, .row = 7});
  CHECK(dataset.example(0).input_ids == Ids{0, kMost, 0});
  CHECK(dataset.example(0).labels == Ids{-100, kMost, 0});
  CHECK(dataset.example(0).row == 7);
}

TEST_CASE("any number of threads gives the same rows and the same bad rows", "[data]") {
  const Folder folder;
  std::string text;
  for (int i = 0; i < 5000; ++i) {
    text += i % 7 == 3 ? "broken\n" : fmt::format("{{\"prompt\": \"p{}\", \"completion\": \"c{}\"}}\n", i, i * i);
  }
  const DatasetOptions options{.format = "completion", .skip_bad_rows = true, .keep_text_pairs = 3};
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Dataset one = folder.load(text, options);
  at::set_num_threads(4);
  const Dataset four = folder.load(text, options);
  CHECK(testing::message_of<DataError>([&] { folder.load(text, {.format = "completion"}); }).find("x.jsonl:4") !=
        std::string::npos);
  at::set_num_threads(threads);
  CHECK(one.size() == 4286);
  CHECK(one.bad_row_reasons == four.bad_row_reasons);
  CHECK(std::ranges::equal(one.rows().tokens, four.rows().tokens));
  CHECK(std::ranges::equal(one.rows().ends, four.rows().ends));
  CHECK(std::ranges::equal(one.rows().numbers, four.rows().numbers));
  CHECK(four.text_pairs.at(2).prompt == "p2");
}
