#include "lora/nn/linear_group.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include "catch.h"
#include "lora/core/error.h"
#include "lora/nn/probe.h"

using namespace lora;

namespace {

/// A low-rank update that a group may join to its product, or (`joins` false) has to add.
class LowRank : public nn::Adapter {
 public:
  LowRank(int64_t in, int64_t out, bool joins) : joins_(joins) {
    a = register_parameter("a", at::randn({2, in}));
    b = register_parameter("b", at::randn({out, 2}));
  }
  at::Tensor delta(const at::Tensor& x) override {
    return at::linear(at::linear(x, a.to(x.scalar_type())), b.to(x.scalar_type())) * 0.5;
  }
  std::optional<nn::LowRankFactors> low_rank() const override {
    if (!joins_) return std::nullopt;
    return nn::LowRankFactors{a, b, 0.5};
  }
  at::Tensor weight_delta() const override { return b.mm(a) * 0.5; }
  at::Tensor a, b;

 private:
  bool joins_;
};

nn::Linear frozen_linear(int64_t in, int64_t out, at::ScalarType dtype = at::kFloat) {
  nn::Linear layer(nn::LinearOptions{in, out, false, {dtype, at::kCPU, true}});
  layer->weight.set_requires_grad(false);
  return layer;
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

bool packing_pays() {
  if (ops::PackedWeight::pays(at::kBFloat16)) return true;
  WARN("skipped: this processor does not multiply bf16");
  return false;
}

}  // namespace

TEST_CASE("LinearGroup: side by side what its layers give, with every kind of adapter", "[nn]") {
  at::manual_seed(1);
  std::vector<nn::Linear> layers = {frozen_linear(6, 4), frozen_linear(6, 3), frozen_linear(6, 5)};
  nn::LinearGroup group(layers);
  const auto x = at::randn({2, 3, 6});
  const auto check = [&] {
    std::vector<at::Tensor> expected;
    for (auto& layer : layers) expected.push_back(layer->forward(x));
    CHECK(largest_difference(group.forward(x, {}), at::cat(expected, -1)) < 1e-5);
    CHECK(largest_difference(group.forward(x, nn::FastPaths::none()), at::cat(expected, -1)) < 1e-5);
  };
  check();
  layers[0]->attach("joins", std::make_shared<LowRank>(6, 4, true));
  layers[0]->attach("adds", std::make_shared<LowRank>(6, 4, false));
  layers[2]->attach("joins", std::make_shared<LowRank>(6, 5, true));
  check();
  for (auto& layer : layers) layer->slot.set_active({"joins"});
  check();
  for (auto& layer : layers) layer->slot.set_active({"joins", "adds"});
  check();
  layers[0]->merge();
  check();
  CHECK_THROWS_AS(group.forward(at::randn({2, 5}), {}), ShapeError);
}

TEST_CASE("LinearGroup: a trained weight gets its gradient", "[nn]") {
  std::vector<nn::Linear> layers = {frozen_linear(6, 4), frozen_linear(6, 3)};
  layers[1]->weight.set_requires_grad(true);
  nn::LinearGroup(layers).forward(at::randn({5, 6}), {}).sum().backward();
  CHECK_FALSE(layers[0]->weight.grad().defined());
  CHECK(layers[1]->weight.grad().defined());
}

TEST_CASE("LinearGroup: a probe sees every layer", "[nn]") {
  std::vector<nn::Linear> layers = {frozen_linear(6, 4), frozen_linear(6, 3)};
  int64_t seen = 0;
  const nn::ProbeGuard probe([&](const auto&, const auto&) { ++seen; });
  nn::LinearGroup(layers).forward(at::randn({5, 6}), {});
  CHECK(seen == 2);
}

TEST_CASE("LinearGroup: weights are packed when gradients are on, not before", "[nn]") {
  if (!packing_pays()) return;
  nn::LinearGroup group({frozen_linear(64, 32, at::kBFloat16)});
  {
    const torch::NoGradGuard no_grad;
    CHECK(group.packed_for(at::kBFloat16, {}) == nullptr);
  }
  CHECK(group.packed_for(at::kFloat, {}) == nullptr);
  nn::FastPaths off;
  off.packed_weights = false;
  CHECK(group.packed_for(at::kBFloat16, off) == nullptr);
  const auto packed = group.packed_for(at::kBFloat16, {});
  REQUIRE(packed != nullptr);
  const torch::NoGradGuard no_grad;
  CHECK(group.packed_for(at::kBFloat16, {}) == packed);
}

TEST_CASE("LinearGroup: a changed weight is packed anew", "[nn]") {
  if (!packing_pays()) return;
  auto layer = frozen_linear(64, 32, at::kBFloat16);
  nn::LinearGroup group({layer});
  const auto x = at::randn({8, 64}).to(at::kBFloat16);
  const auto before = group.forward(x, {});
  layer->weight.mul_(2);
  CHECK(largest_difference(group.forward(x, {}), before * 2) < 0.05);
}

TEST_CASE("LinearGroup: a released weight comes back bit for bit when it is asked for", "[nn]") {
  if (!packing_pays()) return;
  at::manual_seed(2);
  std::vector<nn::Linear> layers = {frozen_linear(64, 32, at::kBFloat16), frozen_linear(64, 48, at::kBFloat16)};
  const auto first = layers[0]->weight.detach().clone(), second = layers[1]->weight.detach().clone();
  nn::LinearGroup group(layers);
  nn::FastPaths fast;
  fast.release_plain = true;
  const auto x = at::randn({8, 64}).to(at::kBFloat16);
  const auto y = group.forward(x, fast);
  CHECK(layers[0]->weight_is_released());
  CHECK(layers[0]->weight.sizes() == first.sizes());
  CHECK(layers[0]->weight.isnan().all().item<bool>());

  SECTION("by a plain forward pass") {
    CHECK(largest_difference(layers[0]->forward(x), at::linear(x, first)) == 0);
    CHECK(at::equal(layers[0]->weight, first));
  }
  SECTION("by merging") {
    layers[1]->attach("a", std::make_shared<LowRank>(64, 48, true));
    layers[1]->slot.set_active({"a"});
    layers[1]->merge();
    const auto update = layers[1]->slot.find("a")->weight_delta();
    CHECK(at::equal(layers[1]->weight, (second.to(at::kFloat) + update).to(at::kBFloat16)));
    CHECK(largest_difference(group.forward(x, fast).narrow(-1, 32, 48), at::linear(x, layers[1]->weight)) <
          0.02 * at::linear(x, layers[1]->weight).abs().max().item<double>());
  }
  SECTION("by a change of type") {
    layers[1]->to(at::kFloat);
    CHECK(at::equal(layers[1]->weight, second.to(at::kFloat)));
  }
  SECTION("all of a model at once") {
    struct Model : torch::nn::Module {};
    Model model;
    model.register_module("first", layers[0]);
    model.register_module("second", layers[1]);
    nn::restore_weights(model);
    CHECK(at::equal(layers[0]->weight, first));
    CHECK(at::equal(layers[1]->weight, second));
    CHECK(at::equal(group.forward(x, fast), y));
    CHECK(layers[0]->weight_is_released());
  }
}

TEST_CASE("LinearGroup: a weight that somebody else holds is never released", "[nn]") {
  if (!packing_pays()) return;
  nn::FastPaths fast;
  fast.release_plain = true;
  auto layer = frozen_linear(64, 32, at::kBFloat16);
  const at::Tensor held = layer->weight;
  nn::LinearGroup group({layer});
  group.forward(at::randn({8, 64}).to(at::kBFloat16), fast);
  CHECK_FALSE(layer->weight_is_released());
  CHECK_FALSE(held.isnan().any().item<bool>());
}
