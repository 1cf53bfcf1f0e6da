#include "lora/nn/row_adapters.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include "catch.h"
#include "lora/core/error.h"
#include "lora/nn/embedding.h"
#include "lora/nn/linear_group.h"

using namespace lora;

namespace {

/// Adds a constant to every output, so that who was added where can be read off.
struct Constant : nn::Adapter {
  Constant(int64_t out, double value) : out(out), value(value) {}
  at::Tensor delta(const at::Tensor& x) override {
    auto shape = x.sizes().vec();
    if (x.is_floating_point()) shape.pop_back();
    shape.push_back(out);
    return at::full(shape, value);
  }
  at::Tensor weight_delta() const override { return {}; }
  int64_t out;
  double value;
};

nn::Linear frozen_linear(int64_t in, int64_t out) {
  nn::Linear layer(in, out);
  layer->weight.set_requires_grad(false);
  return layer;
}

std::shared_ptr<Constant> attach(nn::Linear& layer, const std::string& name, double value) {
  auto adapter = std::make_shared<Constant>(layer->options.out_features, value);
  layer->attach(name, adapter);
  return adapter;
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

}  // namespace

TEST_CASE("RowAdapters: each update goes to its rows, whatever is active", "[nn]") {
  const torch::NoGradGuard no_grad;
  auto layer = frozen_linear(4, 3);
  const auto one = attach(layer, "one", 1), ten = attach(layer, "ten", 10);
  layer->slot.set_active({"one"});
  const at::Tensor x = at::randn({4, 2, 4}), base = layer->base_forward(x);
  const at::Tensor added = at::tensor({10.0F, 0.0F, 11.0F, 1.0F}).view({4, 1, 1}).expand_as(base);
  {
    const nn::RowAdapters rows({{&layer->slot, {{one, {2, 3}}, {ten, {0, 2}}}}}, 4, 2);
    CHECK(nn::rows_are_chosen(layer->slot));
    CHECK(largest_difference(layer->forward(x) - base, added) < 1e-5);
    CHECK_THROWS_AS(layer->forward(x.narrow(0, 0, 3)), ShapeError);
  }
  CHECK_FALSE(nn::rows_are_chosen(layer->slot));
  CHECK(largest_difference(layer->forward(x) - base, at::ones_like(base)) < 1e-5);
}

TEST_CASE("RowAdapters: a group adds to its layers' rows, and keeps other layers' adapters", "[nn]") {
  const torch::NoGradGuard no_grad;
  std::vector<nn::Linear> layers = {frozen_linear(4, 3), frozen_linear(4, 2), frozen_linear(4, 5)};
  const auto one = attach(layers[0], "one", 1);
  attach(layers[1], "own", 7);
  layers[1]->slot.set_active({"own"});
  nn::LinearGroup group(layers);
  const at::Tensor x = at::randn({2, 3, 4});
  const at::Tensor base = at::cat({layers[0]->base_forward(x), layers[1]->base_forward(x), layers[2]->base_forward(x)}, -1);
  at::Tensor added = at::zeros_like(base);
  added.narrow(0, 1, 1).narrow(2, 0, 3).fill_(1);
  added.narrow(2, 3, 2).fill_(7);
  const nn::RowAdapters rows({{&layers[0]->slot, {{one, {1}}}}}, 2, 2);
  CHECK(largest_difference(group.forward(x, {}) - base, added) < 1e-5);
  CHECK(largest_difference(group.forward(x, nn::FastPaths::none()) - base, added) < 1e-5);
  CHECK_FALSE(group.keeps_rows_apart(at::kFloat, {}));
}

TEST_CASE("RowAdapters: ids of an embedding have a dimension less", "[nn]") {
  const torch::NoGradGuard no_grad;
  nn::Embedding table(9, 3);
  const auto one = std::make_shared<Constant>(3, 1);
  table->attach("one", one);
  const at::Tensor ids = at::randint(0, 9, {3, 4}, at::kLong), base = table->forward(ids);
  at::Tensor added = at::zeros_like(base);
  added.narrow(0, 2, 1).fill_(1);
  const nn::RowAdapters rows({{&table->slot, {{one, {2}}}}}, 3, 3);
  CHECK(largest_difference(table->forward(ids) - base, added) < 1e-6);
  CHECK_THROWS_AS(table->forward(ids.flatten().narrow(0, 0, 3)), ShapeError);
}

TEST_CASE("RowAdapters: states without rows are refused, unless the base alone serves them", "[nn]") {
  const torch::NoGradGuard no_grad;
  auto adapted = frozen_linear(4, 3), plain = frozen_linear(4, 3);
  const auto one = attach(adapted, "one", 1);
  const nn::RowAdapters rows({{&adapted->slot, {{one, {0}}}}, {&plain->slot, {}}}, 2, 3);
  CHECK_THROWS_AS(adapted->forward(at::randn({2, 4})), ShapeError);
  CHECK_NOTHROW(adapted->forward(at::randn({2, 1, 4})));
  CHECK_NOTHROW(plain->forward(at::randn({5, 4})));
}
