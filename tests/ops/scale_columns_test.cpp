#include "catch.h"
#include "gradcheck.h"
#include "lora/ops/ops.h"

using namespace lora;

TEST_CASE("columns are scaled and shifted, with gradients for all three", "[ops]") {
  check_gradients([](const auto& in) { return ops::scale_columns(in[0], in[1], in[2]); },
                  {random_double({2, 3, 5}), random_double({5}), random_double({5})});
  check_gradients([](const auto& in) { return ops::scale_columns(in[0], in[1]); }, {random_double({4, 5}), random_double({5})});
}

TEST_CASE("columns in bf16 are scaled in fp32 and rounded once", "[ops]") {
  const at::Tensor y = at::randn({7, 33}).to(at::kBFloat16), scale = at::randn({33}), shift = at::randn({33});
  const at::Tensor scaled = ops::scale_columns(y, scale, shift);
  CHECK(scaled.scalar_type() == at::kBFloat16);
  CHECK(at::equal(scaled, (y.to(at::kFloat) * scale + shift).to(at::kBFloat16)));
}
