#include "lora/data/supervision.h"

#include "data/listed_rows.h"
#include "data/small_tokenizer.h"
#include "lora/data/dataset.h"

using namespace lora;

TEST_CASE("targets, rows without any and taught ends are counted", "[data]") {
  testing::ListedRows dataset;
  dataset.examples = {{.input_ids = {1, 5, 6}, .labels = {-100, -100, -100}},
                      {.input_ids = {1, 5, 6, 2}, .labels = {-100, -100, 6, 2}},
                      {.input_ids = {1, 7}, .labels = {1, 7}},
                      {.input_ids = {2}, .labels = {2}}};
  const auto report = data::check_supervision(dataset, nullptr, 2);
  CHECK(report.num_rows == 4);
  CHECK(report.num_tokens == 10);
  CHECK(report.num_targets == 3);
  CHECK(report.rows_without_targets == 2);
  CHECK(report.rows_with_end_token == 1);
  CHECK_FALSE(report.teaches_nothing());
  CHECK_FALSE(report.never_teaches_the_end());
  CHECK(report.shown == "[masked] 1 5 [target] 6 2");
  CHECK(data::check_supervision(dataset, nullptr, -1).never_teaches_the_end());
  CHECK(data::check_supervision(dataset, nullptr, 9).rows_with_end_token == 0);
}

TEST_CASE("the first token of a row is shown as masked, whatever its label", "[data]") {
  testing::ListedRows dataset;
  dataset.examples = {{.input_ids = {1, 7}, .labels = {1, 7}}};
  CHECK(data::check_supervision(dataset, nullptr, 2).shown == "[masked] 1 [target] 7");
}

TEST_CASE("a row is shown as text with its mask", "[data]") {
  const testing::ScratchFolder folder;
  const Path file = folder.write("x.jsonl", R"({"content": "the red\nmat", "summary": "裤子 ran"})");
  const auto tokenizer = testing::small_tokenizer();
  const data::Dataset dataset = data::adgen(file, *tokenizer);
  CHECK(data::check_supervision(dataset, tokenizer.get(), tokenizer->eos_id()).shown ==
        "[masked] <s> the red\\nmat [target] 裤子 ran </s>");
}

TEST_CASE("a set that teaches nothing still shows a row; long rows are shortened", "[data]") {
  testing::ListedRows dataset;
  CHECK(data::check_supervision(dataset, nullptr, 2).teaches_nothing());
  CHECK(data::check_supervision(dataset, nullptr, 2).shown.empty());
  const std::vector<int32_t> ids(1000, 5);
  dataset.examples = {{.input_ids = ids, .labels = std::vector<int32_t>(1000, -100)}};
  const auto report = data::check_supervision(dataset, nullptr, 2);
  CHECK(report.teaches_nothing());
  CHECK(report.shown.starts_with("[masked] 5 5"));
  CHECK(report.shown.find("... 940 more ...") != std::string::npos);
  CHECK(report.shown.size() < 200);
}
