#include "lora/ops/batch.h"

#include <ATen/ATen.h>

#include "catch.h"
#include "lora/core/error.h"
#include "lora/ops/segments.h"

using namespace lora;

namespace {

Batch labelled(const at::Tensor& labels, std::vector<int64_t> segment_lengths = {}) {
  Batch batch;
  batch.labels_BS = labels;
  batch.segment_lengths = std::move(segment_lengths);
  return batch;
}

}  // namespace

TEST_CASE("targets are the labels after the shift, with their positions", "[ops]") {
  const auto labels = at::tensor({7, -100, 3, 4, -100, 9, -100, -100}, at::kLong).view({2, 4});
  const Targets targets = targets_of(labelled(labels));
  CHECK(targets.defined());
  CHECK(at::equal(targets.position_T, at::tensor({1, 2, 3}, at::kLong)));
  CHECK(at::equal(targets.label_T, at::tensor({3, 4, 9}, at::kLong)));
  CHECK(targets.largest == 9);
  CHECK(at::equal(targets.first_F, at::tensor({0}, at::kLong)));
  CHECK(at::equal(targets.first_label_F, at::tensor({7}, at::kLong)));
}

TEST_CASE("targets of a packed row: no sequence predicts the next one's first token", "[ops]") {
  const auto labels = at::tensor({7, 8, -100, 3, 4, 12}, at::kLong).view({1, 6});
  const Targets targets = targets_of(labelled(labels, {2, 1, 2, 1}));
  CHECK(at::equal(targets.position_T, at::tensor({0, 3}, at::kLong)));
  CHECK(at::equal(targets.label_T, at::tensor({8, 4}, at::kLong)));
  CHECK(at::equal(targets.first_F, at::tensor({0, 2, 3}, at::kLong)));
  CHECK(at::equal(targets.first_label_F, at::tensor({7, 3, 12}, at::kLong)));
  CHECK(targets.largest == 12);
}

TEST_CASE("targets: none, and labels that cannot be", "[ops]") {
  const Targets none = targets_of(labelled(at::full({2, 3}, kIgnoreLabel, at::kLong)));
  CHECK(none.defined());
  CHECK(none.label_T.numel() == 0);
  CHECK(none.largest == -1);
  CHECK_THROWS_AS(targets_of(labelled(at::full({1, 3}, -7, at::kLong))), ShapeError);
  CHECK_THROWS_AS(targets_of(labelled(at::tensor({-7, 1}, at::kLong).view({1, 2}))), ShapeError);
}

TEST_CASE("a batch that stays on the CPU keeps its tensors", "[ops]") {
  Batch batch;
  batch.input_ids_BS = at::ones({1, 3}, at::kLong);
  batch.labels_BS = batch.input_ids_BS;
  const Batch moved = batch.to(at::kCPU);
  CHECK(moved.input_ids_BS.is_same(batch.input_ids_BS));
  CHECK_FALSE(moved.targets.defined());
}

TEST_CASE("bounds: where sequences begin and end, positions from 0 in each", "[ops]") {
  const auto segments = ops::bounds_of({2, 1, 3}, at::kCPU);
  CHECK(segments.by_bounds());
  CHECK_FALSE(segments.empty());
  CHECK(segments.longest == 3);
  CHECK(at::equal(segments.bounds, at::tensor({0, 2, 3, 6}, at::kInt)));
  CHECK(at::equal(segments.position_1N, at::tensor({0, 1, 0, 0, 1, 2}, at::kLong).unsqueeze(0)));
  CHECK_FALSE(ops::segments_of({2, 1}, at::kCPU).by_bounds());
}
