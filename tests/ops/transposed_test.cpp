#include "ops/transposed.h"

#include <ATen/ATen.h>

#include "catch.h"
#include "lora/core/error.h"

using namespace lora;

TEST_CASE("transposed: every number of every size, whole blocks and edges", "[ops]") {
  for (const auto type : {at::kShort, at::kBFloat16, at::kInt, at::kFloat, at::kDouble}) {
    for (const int64_t rows : {1, 15, 31, 32, 33, 64, 100}) {
      for (const int64_t columns : {1, 15, 16, 17, 48, 70}) {
        INFO(rows << " x " << columns << " of " << c10::toString(type));
        // As many different numbers as 2 bytes hold, bit patterns of whatever type.
        const at::Tensor bits = at::arange(rows * columns, at::kShort).view({rows, columns});
        const at::Tensor x = type == at::kBFloat16 ? bits.view(type) : bits.to(type);
        const at::Tensor y = ops::transposed(x);
        CHECK(y.is_contiguous());
        CHECK(y.sizes() == at::IntArrayRef({columns, rows}));
        CHECK(at::equal(type == at::kBFloat16 ? y.view(at::kShort) : y, (type == at::kBFloat16 ? bits : x).t()));
      }
    }
  }
}

TEST_CASE("transposed: refuses what it cannot read", "[ops]") {
  CHECK_THROWS_AS(ops::transposed(at::zeros({4, 6}).t()), ShapeError);
  CHECK_THROWS_AS(ops::transposed(at::zeros({4})), ShapeError);
  CHECK_THROWS_AS(ops::transposed(at::zeros({4, 4}, at::kByte)), ShapeError);
}
