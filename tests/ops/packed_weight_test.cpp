#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "catch.h"
#include "lora/ops/frozen_linear.h"

// Legend: N rows, I inputs, O outputs.
using namespace lora;

TEST_CASE("packed weight: products are those of the plain one, whichever way threads share them", "[ops]") {
  if (!ops::PackedWeight::pays(at::kBFloat16)) {
    WARN("skipped: this processor does not multiply bf16");
    return;
  }
  at::manual_seed(3);
  const int64_t rows = GENERATE(1, 399, 400, 513, 1280, 1281), outputs = GENERATE(40, 1023, 1024);
  const int threads = GENERATE(1, 2, 3);
  constexpr int64_t kInputs = 96;
  CAPTURE(rows, outputs, threads);
  const int had = at::get_num_threads();
  at::set_num_threads(threads);

  const at::Tensor weight_OI = at::randn({outputs, kInputs}).to(at::kBFloat16);
  const at::Tensor x_NI = at::randn({rows, kInputs}).to(at::kBFloat16), dy_NO = at::randn({rows, outputs}).to(at::kBFloat16);
  const ops::PackedWeight packed({weight_OI}, at::kBFloat16);
  const at::Tensor y_NO = x_NI.to(at::kFloat).mm(weight_OI.to(at::kFloat).t());
  const at::Tensor dx_NI = dy_NO.to(at::kFloat).mm(weight_OI.to(at::kFloat));
  // One rounding to bf16 of sums in fp32.
  CHECK(at::allclose(packed.times(x_NI).to(at::kFloat), y_NO, 1e-2, 1e-2));
  CHECK(at::allclose(packed.times_transposed(dy_NO).to(at::kFloat), dx_NI, 1e-2, 1e-2));
  at::set_num_threads(had);
}
