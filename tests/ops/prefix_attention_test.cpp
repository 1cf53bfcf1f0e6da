#include "lora/ops/prefix_attention.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "catch.h"
#include "gradcheck.h"
#include "lora/core/error.h"

using namespace lora;

namespace {

ops::Heads random_heads(int64_t batch, int64_t length) {
  const auto drawn = [&] { return at::randn({batch, 3, length, 8}, at::kDouble); };
  return {drawn(), drawn(), drawn()};
}

/// From the definition: a stored mask of every query and key.
at::Tensor by_mask(const ops::Heads& heads, const std::vector<int64_t>& contexts) {
  const int64_t length = heads.q_BHSK.size(2);
  at::Tensor seen = at::ones({heads.q_BHSK.size(0), 1, length, length}, at::kBool).tril();
  for (size_t row = 0; row < contexts.size(); ++row) seen[static_cast<int64_t>(row)][0].narrow(1, 0, contexts[row]).fill_(true);
  const auto scores = at::matmul(heads.q_BHSK, heads.k_BGSK.transpose(2, 3)) / std::sqrt(8.0);
  const auto shares = scores.masked_fill(seen.logical_not(), -std::numeric_limits<double>::infinity()).softmax(-1);
  return at::matmul(shares, heads.v_BGSK).transpose(1, 2).flatten(2);
}

}  // namespace

TEST_CASE("prefix_attention: equals attention with a mask", "[ops]") {
  at::manual_seed(1);
  const std::vector<std::vector<int64_t>> cases = {{4, 7}, {7, 7}, {9, 9}, {9, 1}, {0, 5}, {0, 0}, {1, 1}};
  for (const auto& contexts : cases) {
    INFO(contexts[0] << ", " << contexts[1]);
    const auto heads = random_heads(2, 9);
    const auto found = ops::prefix_attention(heads, ops::contexts_of(contexts, at::kCPU));
    CHECK((found - by_mask(heads, contexts)).abs().max().item<double>() < 1e-12);
  }
}

TEST_CASE("prefix_attention: backward equals finite differences", "[ops]") {
  at::manual_seed(2);
  const auto contexts = ops::contexts_of({2, 4}, at::kCPU);
  check_gradients(
      [&](const auto& in) {
        return ops::prefix_attention({in[0], in[1], in[2]}, contexts);
      },
      {random_double({2, 3, 5, 4}), random_double({2, 3, 5, 4}), random_double({2, 3, 5, 4})});
}

TEST_CASE("prefix_attention: what does not fit is refused", "[ops]") {
  CHECK_THROWS_AS(ops::contexts_of({}, at::kCPU), ShapeError);
  CHECK_THROWS_AS(ops::contexts_of({3, -1}, at::kCPU), ShapeError);
  CHECK_THROWS_AS(ops::prefix_attention(random_heads(1, 3), ops::contexts_of({4}, at::kCPU)), ShapeError);
}
