#include "adapters/incremental_pca.h"

#include <ATen/ATen.h>

#include "adapters/low_rank_svd.h"
#include "catch.h"

using lora::adapters::IncrementalPca;

namespace {

double difference(const at::Tensor& a, const at::Tensor& b) {
  REQUIRE(a.sizes() == b.sizes());
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

/// Rows of a few directions with clearly different variances, and a mean.
at::Tensor rows_of_few_directions(int64_t count, int64_t width, int64_t directions) {
  const at::Tensor sizes = at::arange(directions, 0, -1, at::kFloat).square();
  return (at::randn({count, directions}) * sizes).mm(at::randn({directions, width})) + 3;
}

/// By definition: the singular vectors of all centred rows.
lora::adapters::LeadingSingular whole(const at::Tensor& rows, int64_t components) {
  const at::Tensor wide = rows.to(at::kDouble);
  const auto [u, s, vh] = at::linalg_svd(wide - wide.mean(0), /*full_matrices=*/false);
  return {u, s.slice(0, 0, components), vh.slice(0, 0, components)};
}

}  // namespace

TEST_CASE("components of batches are those of all rows at once, signs fixed", "[adapters]") {
  at::manual_seed(3);
  const at::Tensor rows = rows_of_few_directions(60, 20, 5);
  IncrementalPca pca(5);
  CHECK(pca.is_empty());
  for (const auto& batch : rows.split(15)) pca.add(batch);
  const auto wanted = whole(rows, 5);
  CHECK(difference(pca.singular_values(), wanted.s_R) < 1e-3 * wanted.s_R[0].item<double>());
  CHECK(difference((pca.components().to(at::kDouble) * wanted.v_IR).sum(1).abs(), at::ones({5}, at::kDouble)) < 1e-4);
  const at::Tensor largest = pca.components().gather(1, pca.components().abs().argmax(1, true));
  CHECK((largest > 0).all().item<bool>());
  const at::Tensor variance = (rows.to(at::kDouble) - rows.to(at::kDouble).mean(0)).square().sum();
  CHECK(difference(pca.explained_ratio(), wanted.s_R.square() / variance) < 1e-5);
}

TEST_CASE("components depend neither on other random numbers nor draw any", "[adapters]") {
  at::manual_seed(4);
  const at::Tensor rows = rows_of_few_directions(40, 12, 4);
  const auto components = [&](uint64_t seed) {
    at::manual_seed(seed);
    IncrementalPca pca(3);
    pca.add(rows);
    return std::pair(pca.components().clone(), at::rand({1}).item<float>());
  };
  const auto [first, drawn_first] = components(1);
  const auto [second, drawn_second] = components(2);
  CHECK(at::equal(first, second));
  at::manual_seed(1);
  CHECK(at::rand({1}).item<float>() == drawn_first);
}

TEST_CASE("the randomised search finds the largest singular values of tall and of wide matrices", "[adapters]") {
  at::manual_seed(5);
  for (const auto& matrix : {rows_of_few_directions(30, 10, 6), rows_of_few_directions(10, 30, 6)}) {
    const auto found = lora::adapters::low_rank_svd(matrix, 6, 4);
    const auto [u, s, vh] = at::linalg_svd(matrix, false);
    CHECK(difference(found.s_R, s.slice(0, 0, 6)) < 1e-4 * s[0].item<double>());
    const at::Tensor again = (found.u_OR * found.s_R).mm(found.v_IR.t());
    const at::Tensor best = (u.slice(1, 0, 6) * s.slice(0, 0, 6)).mm(vh.slice(0, 0, 6));
    CHECK(difference(again, best) < 1e-3);
  }
}
