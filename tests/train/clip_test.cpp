#include "lora/train/clip.h"

#include <ATen/ATen.h>

#include <cmath>

#include "support.h"

using lora::train::clip_gradients;

TEST_CASE("gradients are clipped to a norm over all of them", "[train]") {
  const std::vector<at::Tensor> gradients = {at::tensor({3.0f, 0.0f}), at::tensor({{-4.0f}})};

  SECTION("above the norm: scaled to it, keeping the direction") {
    CHECK(clip_gradients(gradients, 1) == Approx(5));
    CHECK(gradients[0].allclose(at::tensor({0.6f, 0.0f})));
    CHECK(gradients[1].allclose(at::tensor({{-0.8f}})));
  }
  SECTION("below the norm, or switched off: untouched") {
    const double limit = GENERATE(5.5, 0.0);
    CHECK(clip_gradients(gradients, limit) == Approx(5));
    CHECK(gradients[0].equal(at::tensor({3.0f, 0.0f})));
    CHECK(gradients[1].equal(at::tensor({{-4.0f}})));
  }
}

TEST_CASE("clipping survives squares that overflow fp32", "[train]") {
  const std::vector<at::Tensor> gradients = {at::tensor({3e30f}), at::tensor({4e30f})};
  CHECK(clip_gradients(gradients, 1) == Approx(5e30));
  CHECK(gradients[0].item<float>() == Approx(0.6));
  CHECK(gradients[1].item<float>() == Approx(0.8));
}

TEST_CASE("clipping takes types mixed and nothing at all", "[train]") {
  CHECK(clip_gradients({}, 1) == 0);
  CHECK(clip_gradients({at::tensor({3.0f}), at::tensor({4.0}, at::kDouble)}, 0) == Approx(5));
}

TEST_CASE("the norm of bf16 gradients equals that in double", "[train]") {
  at::manual_seed(5);
  const std::vector<at::Tensor> gradients = {at::randn({10'007}).to(at::kBFloat16), at::randn({3}).to(at::kBFloat16)};
  const double expected = at::cat(gradients).to(at::kDouble).norm().item<double>();
  CHECK(clip_gradients(gradients, 0) == Approx(expected).epsilon(1e-6));
  CHECK(clip_gradients({at::full({2}, 1e30).to(at::kBFloat16)}, 0) == Approx(std::sqrt(2) * 1e30).epsilon(0.01));
  gradients[1][1] = std::nan("");
  CHECK(std::isnan(clip_gradients(gradients, 1)));
}

TEST_CASE("clipping takes numbers beyond their own type's squares, strides and types side by side", "[train]") {
  CHECK(clip_gradients({at::tensor({3e30}, at::kDouble), at::tensor({4e30}, at::kDouble)}, 0) == Approx(5e30));
  CHECK(clip_gradients({at::full({100}, 10'000, at::kHalf)}, 0) == Approx(1e5).epsilon(1e-6));
  const auto strided = at::full({4, 6}, 1000).to(at::kBFloat16).narrow(1, 2, 2).fill_(2);
  CHECK(clip_gradients({strided}, 0) == Approx(std::sqrt(32.0)).epsilon(1e-6));
  CHECK(clip_gradients({strided, at::tensor({2.0f})}, 0) == Approx(6).epsilon(1e-6));
  CHECK(clip_gradients({at::tensor({2.0f}), at::full({8}, 2).to(at::kBFloat16)}, 3) == Approx(6).epsilon(1e-6));
}

TEST_CASE("the norm of a bf16 gradient counts its own numbers and none that lie behind them", "[train]") {
  const auto memory = at::full({9000}, 1000).to(at::kBFloat16);
  const auto gradient = memory.slice(0, 0, 4097).fill_(1);
  CHECK(clip_gradients({gradient}, 0) == Approx(std::sqrt(4097.0)).epsilon(1e-6));
}
