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
