#include "lora/data/overlap.h"

#include "data/small_tokenizer.h"

using namespace lora;
using Rows = std::vector<int64_t>;

namespace {

/// One row for each text: "?" and the text, which is what it teaches.
data::Dataset rows_of(const std::vector<std::string>& answers) {
  const testing::ByteTokenizer tokenizer;
  data::Dataset dataset;
  for (const auto& answer : answers) {
    data::Example example{.input_ids = {static_cast<int32_t>('?') + 3}, .labels = {kIgnoreLabel}, .row = dataset.size() + 1};
    for (const int64_t id : tokenizer.encode(answer)) {
      example.input_ids.push_back(static_cast<int32_t>(id));
      example.labels.push_back(static_cast<int32_t>(id));
    }
    dataset.add(example);
  }
  return dataset;
}

}  // namespace

TEST_CASE("rows that are in both sets are found, whatever their place", "[data][overlap]") {
  const auto training = rows_of({"one", "two", "two", "three"});
  CHECK(data::find_equal_rows(training, rows_of({"three", "tw", "two", "four", "two"})) == Rows{0, 2, 4});
  CHECK(data::find_equal_rows(training, rows_of({"thre", "threee", "one "})).empty());
}

TEST_CASE("answers with thirteen characters in common are found", "[data][overlap]") {
  const testing::ByteTokenizer tokenizer;
  const auto training = rows_of({"begin abcdefghijklm end", "一二三四五六七八九十甲乙丙", "short"});
  // Row 0 has 13 characters in common, row 1 twelve; Chinese characters count once each; short answers share nothing.
  const auto evaluation = rows_of({"x abcdefghijklm x", "xabcdefghijklx", "abcdefghijklm", "又一二三四五六七八九十甲乙丙又",
                                   "一二三四五六七八九十甲乙", "short"});
  CHECK(data::find_sharing_rows(training, evaluation, tokenizer) == Rows{0, 2, 3});
  CHECK(data::find_overlap(training, evaluation, &tokenizer).equal == Rows{5});
  CHECK(data::find_overlap(training, evaluation, nullptr).sharing.empty());
}

TEST_CASE("rows are left out by their places", "[data][overlap]") {
  const auto rows = data::without_rows(rows_of({"a", "b", "c", "d"}), {1, 3});
  REQUIRE(rows.size() == 2);
  CHECK(rows.number(0) == 1);
  CHECK(rows.number(1) == 3);
}
