#include "lora/data/format_registry.h"

#include "data/dataset_cache.h"
#include "data/row_value.h"
#include "data/small_tokenizer.h"
#include "formats/json.h"
#include "lora/core/error.h"
#include "lora/data/dataset.h"
#include "support.h"

using namespace lora;
using data::Dataset;
using data::DatasetOptions;
using data::Example;
using data::FormattedRow;
using data::Row;
using data::TextPair;
using data::Tokenizer;
using testing::message_of;

namespace {

/// A byte tokenizer whose tokens may be kept.
class KnownTokenizer : public testing::ByteTokenizer {
 public:
  std::string fingerprint() const override { return "bytes"; }
};

FormattedRow read_pairs(const Row& row, const Tokenizer*) { return TextPair{row.text("q"), row.text_or("a", "none")}; }

FormattedRow read_turns(const Row& row, const Tokenizer*) {
  return std::vector<data::Message>{{"user", row.text("q")}, {"assistant", row.text("a")}};
}

FormattedRow read_tokens(const Row& row, const Tokenizer*) {
  Example example;
  for (const int64_t id : row.integers("ids")) example.input_ids.push_back(static_cast<int32_t>(id));
  if (row.has("targets")) {
    example.labels.assign(example.input_ids.size(), static_cast<int32_t>(kIgnoreLabel));
    for (const int64_t i : row.integers("targets"))
      example.labels.at(static_cast<size_t>(i)) = example.input_ids.at(static_cast<size_t>(i));
  }
  return example;
}

/// Once for the whole program: the table is the process's.
void register_once() {
  static const bool done = [] {
    data::register_data_format({.name = "pairs", .version = "1", .read = read_pairs});
    data::register_data_format({.name = "turns", .version = "1", .read = read_turns});
    data::register_data_format(
        {.name = "ids", .version = "1", .read = read_tokens, .has_answers = false, .needs_tokenizer = false});
    data::register_data_format({.name = "answered_ids", .version = "1", .read = read_tokens});
    return true;
  }();
  REQUIRE(done);
}

struct Folder : testing::ScratchFolder {
  Folder() { register_once(); }
  Dataset load(const std::string& text, const DatasetOptions& options) const {
    const KnownTokenizer tokenizer;
    return data::load_dataset(write("x.jsonl", text), options, &tokenizer);
  }
};

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("registered formats: names are unique, and what every format needs is there", "[formats]") {
  register_once();
  const auto before = data::data_format_names();
  CHECK(before.front() == "adgen");
  CHECK(before.back() == "answered_ids");
  CHECK(
      contains(message_of<ConfigError>([] { data::register_data_format({.name = "pairs", .version = "1", .read = read_pairs}); }),
               "found a second \"pairs\"; taken are adgen, alpaca"));
  CHECK_THROWS_AS(data::register_data_format({.name = "chat", .version = "1", .read = read_pairs}), ConfigError);
  CHECK_THROWS_AS(data::register_data_format({.name = "", .version = "1", .read = read_pairs}), ConfigError);
  CHECK_THROWS_AS(data::register_data_format({.name = "other", .version = "", .read = read_pairs}), ConfigError);
  CHECK_THROWS_AS(data::register_data_format({.name = "other", .version = "1", .read = {}}), ConfigError);
  CHECK_THROWS_AS(data::register_data_format({.name = "other", .version = "1", .read = read_pairs, .needs_tokenizer = false}),
                  ConfigError);
  CHECK(data::data_format_names() == before);
  CHECK(data::has_answers("pairs"));
  CHECK_FALSE(data::has_answers("ids"));
  CHECK_FALSE(data::needs_tokenizer("ids"));
  CHECK(contains(message_of<ConfigError>([] { data::has_answers("pair"); }), "did you mean pairs?"));
}

TEST_CASE("registered formats: texts become completion rows, conversations chat rows", "[formats]") {
  const Folder folder;
  const auto own = folder.load("{\"q\": \"ab\", \"a\": \"c\"}\n", {.format = "pairs", .keep_text_pairs = 1});
  const auto same = folder.load("{\"prompt\": \"ab\", \"completion\": \"c\"}\n", {.format = "completion"});
  CHECK(own.example(0).input_ids == same.example(0).input_ids);
  CHECK(own.example(0).labels == same.example(0).labels);
  CHECK(own.text_pairs.at(0).response == "c");
  const auto vicuna = formats::prompt_template("vicuna");
  const auto turns = folder.load("{\"q\": \"ab\", \"a\": \"c\"}\n", {.format = "turns", .prompt_template = vicuna});
  const auto chat = folder.load(R"({"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]})",
                                {.format = "chat", .prompt_template = vicuna});
  CHECK(turns.example(0).input_ids == chat.example(0).input_ids);
  CHECK(turns.example(0).labels == chat.example(0).labels);
}

TEST_CASE("registered formats: tokens are taken as they are, cut and checked", "[formats]") {
  const Folder folder;
  const auto rows =
      folder.load("{\"ids\": [5, 6, 7], \"targets\": [2]}\n{\"ids\": [5, 6, 7, 8, 9]}\n", {.format = "ids", .max_length = 4});
  CHECK(rows.example(0).labels == std::vector<int32_t>{-100, -100, 7});
  CHECK(rows.example(1).input_ids == std::vector<int32_t>{5, 6, 7, 8});
  CHECK(rows.example(1).labels == rows.example(1).input_ids);
  CHECK(rows.num_truncated == 1);
  for (const char* bad : {R"({"ids": []})", R"({"ids": [1, -1]})", R"({"ids": [1, 99]})", R"({"ids": [5, 6], "targets": []})"}) {
    INFO(bad);
    CHECK_THROWS_AS(folder.load(bad, {.format = "ids", .vocab_size = 50}), DataError);
  }
  // With answers, the last one and what it follows are texts.
  const auto answered =
      folder.load(R"({"ids": [68, 69, 70, 71, 72], "targets": [1, 3, 4]})", {.format = "answered_ids", .keep_text_pairs = 1});
  CHECK(answered.text_pairs.at(0).prompt == "ABC");
  CHECK(answered.text_pairs.at(0).response == "DE");
}

TEST_CASE("registered formats: bad rows have their numbers, whatever the function throws", "[formats]") {
  const Folder folder;
  const std::string text = "{\"q\": \"a\"}\n{\"x\": 1}\n{\"q\": 2}\n";
  CHECK(contains(message_of<DataError>([&] { folder.load(text, {.format = "pairs"}); }), "x.jsonl:2] \"q\" must be there"));
  const auto kept = folder.load(text, {.format = "pairs", .skip_bad_rows = true});
  CHECK((kept.num_rows == 3 && kept.num_bad_rows == 2 && kept.size() == 1));
  // vector::at throws what the standard library has.
  const std::string outside = R"({"ids": [5, 6], "targets": [9]})";
  CHECK(contains(message_of<DataError>([&] { folder.load(outside, {.format = "ids"}); }),
                 "x.jsonl:1] format ids must be able to read the row"));
  CHECK(contains(message_of<DataError>([&] { folder.load(R"({"q": "a", "a": " "})", {.format = "pairs"}); }), "x.jsonl:1]"));
}

TEST_CASE("registered formats: kept tokens are those of one name and version", "[formats]") {
  const Folder folder;
  const KnownTokenizer tokenizer;
  static const bool done = [] {
    data::register_data_format({.name = "first", .version = "7", .read = read_pairs});
    data::register_data_format({.name = "second", .version = "7", .read = read_pairs});
    return true;
  }();
  REQUIRE(done);
  const auto load = [&](const std::string& format) {
    return folder.load("{\"q\": \"a\"}", {.format = format, .cache_dir = folder.path() / "cache"});
  };
  CHECK_FALSE(load("first").cache_file);
  CHECK(load("first").cache_file);
  CHECK_FALSE(load("second").cache_file);
  // The file is named after the digest of this text.
  CHECK(contains(data::dataset_description("x", "digest", {.format = "first"}, &tokenizer), "format registered 5 first 1 7\n"));
}

TEST_CASE("a row gives typed values and says what is wrong with others", "[formats]") {
  const auto json = formats::parse_json(
      R"({"s": "x", "e": "", "n": 2.5, "i": 7, "is": [1, 2], "ss": ["a"], "rs": [{"k": 1}], "z": null})", "row");
  const Row row = data::row_of(json);
  CHECK((row.has("s") && !row.has("z") && !row.has("none")));
  CHECK((row.text("s") == "x" && row.text_or("e", "y").empty() && row.text_or("z", "y") == "y"));
  CHECK((row.number("n") == 2.5 && row.number("i") == 7 && row.integer("i") == 7));
  CHECK(row.integers("is") == std::vector<int64_t>{1, 2});
  CHECK(row.texts("ss") == std::vector<std::string>{"a"});
  CHECK(row.rows("rs").at(0).integer("k") == 1);
  CHECK(formats::parse_json(row.json(), "row") == json);
  CHECK_THROWS_AS(row.text("e"), DataError);
  CHECK_THROWS_AS(row.text("i"), DataError);
  CHECK_THROWS_AS(row.text_or("i", ""), DataError);
  CHECK_THROWS_AS(row.integer("n"), DataError);
  CHECK_THROWS_AS(row.integer("none"), DataError);
  CHECK_THROWS_AS(row.integers("ss"), DataError);
  CHECK_THROWS_AS(row.texts("is"), DataError);
  CHECK_THROWS_AS(row.texts("s"), DataError);
  CHECK_THROWS_AS(row.rows("is"), DataError);
  CHECK_THROWS_AS(row.number("s"), DataError);
}
