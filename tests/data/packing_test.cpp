#include "lora/data/packing.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "catch.h"
#include "data/listed_rows.h"
#include "lora/core/error.h"
#include "lora/core/random.h"
#include "lora/data/collate.h"
#include "lora/data/loader.h"

using namespace lora;

namespace {

testing::ListedRows dataset_of(const std::vector<int64_t>& lengths) {
  testing::ListedRows dataset;
  for (size_t i = 0; i < lengths.size(); ++i) {
    const std::vector<int32_t> ids(static_cast<size_t>(lengths[i]), static_cast<int32_t>(i + 1));
    dataset.examples.push_back({.input_ids = ids, .labels = ids, .row = static_cast<int64_t>(i) + 1});
  }
  return dataset;
}

}  // namespace

TEST_CASE("rows go where they leave least room, longest first", "[data]") {
  using Packs = std::vector<std::vector<int64_t>>;
  CHECK(data::pack_rows(dataset_of({6, 5, 4, 3, 2}), 10) == Packs{{0, 2}, {1, 3, 4}});
  CHECK(data::pack_rows(dataset_of({2, 3, 6, 5, 4}), 10) == Packs{{0, 1, 3}, {2, 4}});  // in a pack they keep their order
  CHECK(data::pack_rows(dataset_of({10, 1, 10}), 10) == Packs{{0}, {1}, {2}});
  CHECK(data::pack_rows(dataset_of({3, 3, 3}), 3) == Packs{{0}, {1}, {2}});
  CHECK_THROWS_AS(data::pack_rows(dataset_of({4, 11}), 10), ConfigError);
}

TEST_CASE("every row is in one pack, no pack is too long, and few packs are needed", "[data]") {
  SplitMix64 random(7);
  std::vector<int64_t> lengths;
  for (int i = 0; i < 3000; ++i) lengths.push_back(1 + static_cast<int64_t>(random.below(128)));
  const auto packs = data::pack_rows(dataset_of(lengths), 512);
  std::set<int64_t> seen;
  for (const auto& pack : packs) {
    int64_t tokens = 0;
    for (const int64_t row : pack) {
      CHECK(seen.insert(row).second);
      tokens += lengths[static_cast<size_t>(row)];
    }
    CHECK(tokens <= 512);
  }
  CHECK(seen.size() == lengths.size());
  const auto total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  CHECK(static_cast<double>(packs.size()) < 1.01 * static_cast<double>(total) / 512 + 1);
}

TEST_CASE("a packed batch is one row; no sequence is taught by the one before it", "[data]") {
  const data::Example a{.input_ids = {5, 6, 7}, .labels = {5, 6, 7}, .row = 4};
  const data::Example b{.input_ids = {8, 9}, .labels = {8, -100}, .row = 9};
  const std::vector<const data::Example*> rows = {&a, &b};
  const Batch batch = data::collate_packed(rows, 99, 4);
  CHECK(at::equal(batch.input_ids_BS, at::tensor({5, 6, 7, 8, 9, 99, 99, 99}, at::kLong).view({1, 8})));
  CHECK(at::equal(batch.labels_BS, at::tensor({5, 6, 7, 8, -100, -100, -100, -100}, at::kLong).view({1, 8})));
  CHECK(batch.segment_lengths == std::vector<int64_t>{3, 2, 3});
  CHECK(batch.rows == std::vector<int64_t>{4, 9});
  CHECK(batch.num_tokens == 5);
  CHECK(batch.num_targets == 2);
  CHECK(batch.num_first_targets == 2);
  CHECK(at::equal(targets_of(batch).label_T, at::tensor({6, 7}, at::kLong)));
  CHECK(data::collate_packed(rows, 99).segment_lengths == std::vector<int64_t>{3, 2});
}

TEST_CASE("a packing loader gives every row once an epoch", "[data]") {
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < 40; ++i) lengths.push_back(i % 7 + 2);
  const auto dataset = dataset_of(lengths);
  data::Loader loader(dataset, {.batch_size = 2, .drop_last = false, .seed = 3, .pack_to = 20});
  std::vector<int64_t> rows;
  while (const auto step = loader.next()) {
    for (const Batch& batch : step->micro_batches) {
      CHECK(batch.input_ids_BS.size(0) == 1);
      CHECK(batch.input_ids_BS.size(1) ==
            std::accumulate(batch.segment_lengths.begin(), batch.segment_lengths.end(), int64_t{0}));
      rows.insert(rows.end(), batch.rows.begin(), batch.rows.end());
    }
  }
  std::sort(rows.begin(), rows.end());
  std::vector<int64_t> expected(40);
  std::iota(expected.begin(), expected.end(), int64_t{1});
  CHECK(rows == expected);
}
