#include "lora/adapters/dora.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/utils.h>

#include "adapters/fake_llama.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "lora/nn/linear_group.h"
#include "lora/ops/device.h"
#include "lora/ops/frozen_linear.h"
#include "ops/rows.h"
#include "support.h"

using namespace lora;
using testing::difference;

namespace {

nn::Linear linear(int64_t in, int64_t out, bool bias) {
  nn::Linear layer(nn::LinearOptions{in, out, bias, {}});
  for (auto& parameter : layer->parameters()) parameter.set_requires_grad(false);
  return layer;
}

/// A DoRA adapter with values away from the start, attached and active.
std::shared_ptr<DoraLinear> attached(nn::Linear& layer, const LoraOptions& options = {}) {
  auto dora = std::make_shared<DoraLinear>(*layer, 3, 6, options);
  dora->reset_magnitude(*layer);
  {
    const torch::NoGradGuard no_grad;
    dora->lora_B.normal_(0, 0.3);
    dora->lora_magnitude_vector.mul_(at::rand_like(dora->lora_magnitude_vector) + 0.5);
  }
  layer->attach("a", dora);
  layer->slot.set_active({"a"});
  return dora;
}

/// The paper's form: W + s B A made whole, its lengths a constant.
at::Tensor by_definition(const at::Tensor& x, const nn::Linear& layer, const DoraLinear& dora) {
  const at::Tensor v = layer->weight + dora.lora_B.mm(dora.lora_A) * dora.scale();
  const at::Tensor g = dora.lora_magnitude_vector / at::linalg_vector_norm(v, 2, {1}).detach();
  const at::Tensor y = x.matmul(v.t()) * g;
  return layer->bias.defined() ? y + layer->bias : y;
}

std::vector<at::Tensor> gradients_of(const at::Tensor& y, const at::Tensor& direction, const DoraLinear& dora) {
  return torch::autograd::grad({y}, {dora.lora_A, dora.lora_B, dora.lora_magnitude_vector}, {direction});
}

}  // namespace

TEST_CASE("DoRA's output and gradients are those of its definition", "[adapters]") {
  at::manual_seed(1);
  for (const bool bias : {false, true}) {
    auto layer = linear(7, 5, bias);
    const auto dora = attached(layer);
    const at::Tensor x = at::randn({2, 4, 7}), direction = at::randn({2, 4, 5});
    const at::Tensor y = layer->forward(x), wanted = by_definition(x, layer, *dora);
    CHECK(difference(y, wanted) < 1e-5);
    const auto found = gradients_of(y, direction, *dora), right = gradients_of(wanted, direction, *dora);
    for (size_t i = 0; i < 3; ++i) CHECK(difference(found[i], right[i]) < 2e-5);
  }
}

TEST_CASE("DoRA in a group equals its layers one by one", "[adapters]") {
  at::manual_seed(2);
  std::vector<nn::Linear> layers = {linear(8, 6, true), linear(8, 4, true), linear(8, 6, true)};
  const auto first = attached(layers[0]), last = attached(layers[2]);
  nn::LinearGroup group(layers);
  const at::Tensor x = at::randn({3, 8});
  const at::Tensor apart = at::cat({layers[0]->forward(x), layers[1]->forward(x), layers[2]->forward(x)}, 1);
  const at::Tensor joined = group.forward(x, {});
  CHECK(difference(joined, apart) < 1e-5);
  const at::Tensor direction = at::randn_like(joined);
  const std::vector<at::Tensor> factors = {first->lora_A, last->lora_B, first->lora_magnitude_vector,
                                           last->lora_magnitude_vector};
  const auto found = torch::autograd::grad({joined}, factors, {direction}),
             right = torch::autograd::grad({apart}, factors, {direction});
  for (size_t i = 0; i < factors.size(); ++i) CHECK(difference(found[i], right[i]) < 2e-5);
}

TEST_CASE("under dropout DoRA drops the input of both its terms, and not of the base", "[adapters]") {
  auto layer = linear(6, 5, true);
  const auto dora = attached(layer, {.dropout = 0.4});
  const at::Tensor x = at::randn({9, 6});
  seed_generators(5);
  const at::Tensor y = layer->forward(x);
  seed_generators(5);
  const at::Tensor dropped = x * at::empty_like(x).bernoulli_(0.6).div_(0.6);
  const at::Tensor v = layer->weight + dora->weight_delta();
  const at::Tensor g = dora->lora_magnitude_vector / at::linalg_vector_norm(v, 2, {1}).detach();
  const at::Tensor base = dropped.mm(layer->weight.t());
  const at::Tensor low = dropped.mm(dora->lora_A.t()).mm(dora->lora_B.t()) * dora->scale();
  const at::Tensor wanted = at::linear(x, layer->weight, layer->bias) + (g - 1) * base + g * low;
  CHECK(difference(y, wanted) < 1e-5);
  layer->eval();
  CHECK(difference(layer->forward(x), by_definition(x, layer, *dora)) < 1e-5);
}

TEST_CASE("a merged DoRA layer computes the same, and unmerged has its weight back bit for bit", "[adapters]") {
  const torch::NoGradGuard no_grad;
  auto layer = linear(6, 5, true);
  attached(layer);
  const at::Tensor x = at::randn({9, 6}), before = layer->weight.clone();
  const at::Tensor y = layer->forward(x);
  layer->merge();
  CHECK(layer->slot.contributing().empty());
  CHECK(difference(layer->forward(x), y) < 1e-5);
  layer->unmerge();
  CHECK(at::equal(layer->weight, before));
}

TEST_CASE("DoRA finds its lengths without taking a packed weight apart", "[adapters]") {
  if (!ops::PackedWeight::pays(at::kBFloat16)) {
    WARN("skipped: bf16 weights are not packed on this processor");
    return;
  }
  auto layer = linear(64, 48, false);
  layer->to(at::kBFloat16);
  const at::Tensor weight = layer->weight.to(at::kFloat).clone();
  auto dora = std::make_shared<DoraLinear>(*layer, 4, 8, LoraOptions{});
  dora->reset_magnitude(*layer);
  {
    const torch::NoGradGuard no_grad;
    dora->lora_B.normal_(0, 0.1);
  }
  layer->attach("a", dora);
  layer->slot.set_active({"a"});
  nn::LinearGroup group({layer});
  nn::FastPaths fast;
  fast.release_plain = true;
  const at::Tensor x = at::randn({40, 64}).to(at::kBFloat16);
  group.forward(x, fast);
  const at::Tensor y = group.forward(x, fast);
  CHECK(layer->weight_is_released());
  const at::Tensor v = weight + dora->weight_delta();
  const at::Tensor wanted = x.to(at::kFloat).mm(v.t()) * (dora->lora_magnitude_vector / at::linalg_vector_norm(v, 2, {1}));
  CHECK(difference(y.to(at::kFloat), wanted) < 0.02 * wanted.abs().max().item<double>());
}

TEST_CASE("a weight that changes is measured again", "[adapters]") {
  const torch::NoGradGuard no_grad;
  auto layer = linear(6, 5, false);
  const auto dora = attached(layer);
  const at::Tensor x = at::randn({3, 6});
  layer->forward(x);
  layer->weight.mul_(3);
  CHECK(difference(layer->forward(x), by_definition(x, layer, *dora)) < 1e-5);
}

TEST_CASE("without gradients DoRA finds its scale once, and anew when anything it came from changes", "[adapters]") {
  at::manual_seed(6);
  std::vector<nn::Linear> layers = {linear(8, 6, true), linear(8, 4, true)};
  const auto first = attached(layers[0]), last = attached(layers[1]);
  nn::LinearGroup group(layers);
  const at::Tensor x = at::randn({3, 8});
  const auto check = [&] {
    const at::Tensor wanted = at::cat({by_definition(x, layers[0], *first), by_definition(x, layers[1], *last)}, 1);
    CHECK(difference(group.forward(x, {}), wanted) < 1e-5);
    CHECK(difference(layers[0]->forward(x), by_definition(x, layers[0], *first)) < 1e-5);
  };
  {
    const torch::NoGradGuard no_grad;
    CHECK(!first->rows_for_scale().defined());
    check();
    CHECK(first->output_scale({}, *layers[0]).is_same(first->output_scale({}, *layers[0])));
    for (const at::Tensor& changed :
         {first->lora_A, last->lora_B, first->lora_magnitude_vector, layers[0]->weight, layers[1]->weight}) {
      changed.mul_(1.5);
      check();
    }
  }
  CHECK(first->rows_for_scale().defined());
  CHECK(group.forward(x, {}).requires_grad());
}

TEST_CASE("without gradients a base that could train is measured once, too, and anew after a pass that trains it", "[adapters]") {
  auto layer = linear(8, 6, true);
  layer->weight.set_requires_grad(true);
  const auto dora = attached(layer);
  const at::Tensor x = at::randn({3, 8});
  {
    const torch::NoGradGuard no_grad;
    layer->forward(x);
    CHECK(dora->output_scale({}, *layer).is_same(dora->output_scale({}, *layer)));
  }
  layer->forward(x);
  layer->weight.data_ptr<float>()[0] += 1;  // as a fused update does, of which the version says nothing
  const torch::NoGradGuard no_grad;
  CHECK(difference(layer->forward(x), by_definition(x, layer, *dora)) < 1e-5);
}

TEST_CASE("a scale that was kept does not outlive a pass with gradients, whose update may write past the versions",
          "[adapters]") {
  at::manual_seed(4);
  auto layer = linear(8, 6, true);
  const auto dora = attached(layer);
  const at::Tensor x = at::randn({3, 8});
  const auto check = [&] {
    const torch::NoGradGuard no_grad;
    CHECK(difference(layer->forward(x), by_definition(x, layer, *dora)) < 1e-5);
  };
  check();
  layer->forward(x);
  dora->lora_B.data_ptr<float>()[0] += 1;
  dora->lora_magnitude_vector.data_ptr<float>()[1] += 1;
  check();
}

TEST_CASE("a row's outputs under DoRA are the same beside others and alone, bit for bit", "[adapters]") {
  at::manual_seed(9);
  const torch::NoGradGuard no_grad;
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    std::vector<nn::Linear> layers = {linear(64, 48, true), linear(64, 32, true)};
    for (auto& layer : layers) {
      layer->to(dtype);
      attached(layer);
    }
    nn::LinearGroup group(layers);
    REQUIRE(group.keeps_rows_apart(dtype, {}));
    const at::Tensor x = at::randn({ops::rows::kFewRows, 64}).to(dtype), together = group.forward(x, {});
    for (int64_t row = 0; row < x.size(0); ++row) CHECK(together.narrow(0, row, 1).equal(group.forward(x.narrow(0, row, 1), {})));
    // Rounded to bf16 once more than one by one: before the scale.
    const double tolerance = dtype == at::kFloat ? 1e-5 : 0.05;
    CHECK(difference(together, at::cat({layers[0]->forward(x), layers[1]->forward(x)}, 1)) < tolerance);
  }
}

TEST_CASE("rows of zeros stay zeros", "[adapters]") {
  auto layer = linear(6, 5, false);
  {
    const torch::NoGradGuard no_grad;
    layer->weight[2].zero_();
  }
  auto dora = std::make_shared<DoraLinear>(*layer, 3, 6, LoraOptions{});
  dora->reset_magnitude(*layer);
  layer->attach("a", dora);
  layer->slot.set_active({"a"});
  const at::Tensor y = layer->forward(at::randn({3, 6}));
  CHECK(y.isfinite().all().item<bool>());
  y.sum().backward();
  for (const auto& parameter : dora->parameters()) CHECK(parameter.grad().isfinite().all().item<bool>());
}
