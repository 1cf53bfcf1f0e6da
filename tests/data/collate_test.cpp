#include "lora/data/collate.h"

#include <ATen/ATen.h>

#include "catch.h"
#include "lora/core/error.h"

using namespace lora;

TEST_CASE("rows are padded on the right and counted", "[data]") {
  const data::Example a{.input_ids = {5, 6, 7}, .labels = {-100, 6, 7}, .row = 4};
  const data::Example b{.input_ids = {8}, .labels = {8}, .row = 9};
  const std::vector<const data::Example*> rows = {&a, &b};
  const Batch batch = data::collate(rows, 99);
  CHECK(at::equal(batch.input_ids_BS, at::tensor({5, 6, 7, 8, 99, 99}, at::kLong).view({2, 3})));
  CHECK(at::equal(batch.labels_BS, at::tensor({-100, 6, 7, 8, -100, -100}, at::kLong).view({2, 3})));
  CHECK_FALSE(batch.attention_mask_BS.defined());
  CHECK_FALSE(batch.position_ids_BS.defined());
  CHECK(batch.rows == std::vector<int64_t>{4, 9});
  CHECK(batch.num_tokens == 4);
  CHECK(batch.num_targets == 2);
}

TEST_CASE("rows are filled up to a multiple, within the limit where they keep to it themselves", "[data]") {
  const data::Example a{.input_ids = {5, 6, 7}, .labels = {5, 6, 7}};
  const std::vector<const data::Example*> rows = {&a};
  const auto length = [&](int64_t multiple, int64_t limit) {
    return data::collate(rows, 0, multiple, limit).input_ids_BS.size(1);
  };
  CHECK(length(1, 0) == 3);
  CHECK(length(8, 0) == 8);
  CHECK(length(8, 8) == 8);
  CHECK(length(8, 5) == 5);
  CHECK(length(8, 2) == 3);
  CHECK(length(3, 2) == 3);
}

TEST_CASE("the first label of a row is no target", "[data]") {
  CHECK(data::Example{.input_ids = {1, 2}, .labels = {1, 2}}.num_targets() == 1);
  CHECK(data::Example{.input_ids = {1, 2}, .labels = {1, -100}}.num_targets() == 0);
  CHECK(data::Example{}.num_targets() == 0);
}

TEST_CASE("rows that cannot be batched are refused", "[data]") {
  const data::Example uneven{.input_ids = {5, 6}, .labels = {5}, .row = 3};
  const data::Example empty{};
  const auto collate_one = [](const data::Example& row) {
    const std::vector<const data::Example*> rows = {&row};
    return data::collate(rows, 0);
  };
  CHECK_THROWS_AS(collate_one(uneven), DataError);
  CHECK_THROWS_AS(collate_one(empty), DataError);
  CHECK_THROWS_AS(data::collate({}, 0), DataError);
}

TEST_CASE("a batch moves with what it has", "[data]") {
  const data::Example a{.input_ids = {5, 6, 7}, .labels = {-100, 6, 7}, .row = 4};
  const std::vector<const data::Example*> rows = {&a};
  const Batch moved = data::collate(rows, 0).to(at::kMeta);
  CHECK(moved.input_ids_BS.is_meta());
  CHECK(moved.labels_BS.is_meta());
  CHECK_FALSE(moved.attention_mask_BS.defined());
  CHECK(moved.rows == std::vector<int64_t>{4});
  CHECK(moved.num_targets == 2);
}
