#include "lora/nn/kv_cache.h"

#include <ATen/ATen.h>

#include "catch.h"
#include "lora/core/error.h"

using lora::nn::KvCache;

namespace {

at::Tensor append(KvCache& cache, double value, int64_t tokens) {
  const auto keys = at::full({1, 2, tokens, 3}, value), values = at::full({1, 2, tokens, 3}, -value);
  auto [all_keys, all_values] = cache.append(0, keys, values);
  CHECK(at::equal(all_values, -all_keys));
  cache.advance(tokens);
  return all_keys.select(0, 0).select(0, 1).select(1, 2);  // one number per position
}

}  // namespace

TEST_CASE("a cache that was cut back goes on from there", "[nn]") {
  KvCache cache(1);
  append(cache, 1, 2);
  CHECK(at::equal(append(cache, 2, 4), at::tensor({1.F, 1.F, 2.F, 2.F, 2.F, 2.F})));
  cache.cut_back(3);
  CHECK(cache.length() == 3);
  CHECK(at::equal(append(cache, 3, 2), at::tensor({1.F, 1.F, 2.F, 3.F, 3.F})));
  cache.cut_back(5);
  CHECK(cache.length() == 5);
  cache.cut_back(0);
  const auto grown = append(cache, 4, 200);  // more than there is room for
  CHECK(at::equal(grown, at::full({200}, 4.F)));
}

TEST_CASE("a cache that grows keeps what it holds", "[nn]") {
  KvCache cache(1);
  std::vector<float> expected;
  at::Tensor all;
  for (int pass = 0; pass < 90; ++pass) {
    all = append(cache, pass, 3);
    expected.insert(expected.end(), 3, static_cast<float>(pass));
  }
  CHECK(at::equal(all, at::tensor(expected)));
}

TEST_CASE("a cache is cut back to what it holds", "[nn]") {
  KvCache cache(1);
  append(cache, 1, 2);
  CHECK_THROWS_AS(cache.cut_back(3), lora::ShapeError);
  CHECK_THROWS_AS(cache.cut_back(-1), lora::ShapeError);
  CHECK(cache.length() == 2);
}

namespace {

/// Rows and positions as one number each: 10 row + position, -1 - that in the values.
void append_rows(KvCache& cache, const std::vector<std::vector<float>>& numbers_BS) {
  std::vector<at::Tensor> rows;
  for (const auto& row : numbers_BS) rows.push_back(at::tensor(row).view({1, 1, -1, 1}).expand({1, 2, -1, 3}));
  const at::Tensor keys = at::cat(rows);
  cache.append(0, keys, -1 - keys);
}

/// What a cache holds, seen by adding one more position of the number 99 to each row.
std::vector<std::vector<float>> held(KvCache& cache, int64_t rows) {
  const at::Tensor more = at::full({rows, 2, 1, 3}, 99.F);
  const auto [keys, values] = cache.append(0, more, -1 - more);
  CHECK(at::equal(values, -1 - keys));
  std::vector<std::vector<float>> result;
  for (int64_t row = 0; row < rows; ++row) {
    const at::Tensor one = keys[row][1].select(1, 2).contiguous();
    CHECK(at::equal(keys[row].select(2, 0)[0], one));
    result.emplace_back(one.const_data_ptr<float>(), one.const_data_ptr<float>() + one.numel());
  }
  return result;
}

using Rows = std::vector<std::vector<float>>;

}  // namespace

TEST_CASE("rows of a cache leave, change places and multiply", "[nn]") {
  KvCache cache(2);  // the second layer holds nothing
  append_rows(cache, {{0, 1}, {10, 11}, {20, 21}});
  cache.advance(2);
  cache.select_rows({2, 0, 0, 1});
  CHECK(cache.length() == 2);
  CHECK(held(cache, 4) == Rows{{20, 21, 99}, {0, 1, 99}, {0, 1, 99}, {10, 11, 99}});
  cache.select_rows({3});
  CHECK(held(cache, 1) == Rows{{10, 11, 99}});
}

TEST_CASE("the first positions of a cache are dropped, virtual ones stay", "[nn]") {
  KvCache cache(1);
  append_rows(cache, {{100, 101}, {110, 111}});
  cache.advance_virtual(2);
  append_rows(cache, {{0, 1, 2, 3}, {10, 11, 12, 13}});
  cache.advance(4);
  cache.drop_first(3);
  CHECK(cache.length() == 1);
  CHECK(cache.virtual_tokens() == 2);
  CHECK(held(cache, 2) == Rows{{100, 101, 3, 99}, {110, 111, 13, 99}});
  cache.drop_first(0);
  CHECK(held(cache, 2) == Rows{{100, 101, 3, 99}, {110, 111, 13, 99}});
  CHECK_THROWS_AS(cache.drop_first(2), lora::ShapeError);
  CHECK_THROWS_AS(cache.drop_first(-1), lora::ShapeError);
  cache.drop_first(1);
  CHECK(held(cache, 2) == Rows{{100, 101, 99}, {110, 111, 99}});
}
