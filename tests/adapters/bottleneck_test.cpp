#include "lora/adapters/bottleneck.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <functional>

#include "adapters/fake_llama.h"
#include "lora/core/error.h"
#include "support.h"

using namespace lora;
using testing::difference;
using testing::message_of;

namespace {

/// up(f(down(input))), by hand.
at::Tensor network(const torch::nn::Module& adapter, const at::Tensor& input, at::Tensor (*activation)(const at::Tensor&)) {
  const auto parameters = adapter.named_parameters();
  const at::Tensor inner = activation(at::linear(input, parameters["adapter_down.0.weight"], parameters["adapter_down.0.bias"]));
  return at::linear(inner, parameters["adapter_up.weight"], parameters["adapter_up.bias"]);
}

void randomise(torch::nn::Module& adapter) {
  const torch::NoGradGuard no_grad;
  for (auto& parameter : adapter.parameters()) parameter.normal_();
}

}  // namespace

TEST_CASE("each kind of bottleneck adapter reads and adds what its paper says", "[adapters]") {
  const at::Tensor out = at::randn({2, 3, 32}), x = at::randn({2, 3, 32});
  {
    BottleneckAdapter houlsby(32, bottleneck_preset("houlsby"));
    randomise(houlsby);
    CHECK(houlsby.named_parameters()["adapter_down.0.weight"].sizes() == at::IntArrayRef({2, 32}));
    CHECK(difference(houlsby.apply(out, x), out + network(houlsby, out, at::silu)) < 1e-5);
  }
  {
    BottleneckAdapter pfeiffer(32, bottleneck_preset("pfeiffer"));
    randomise(pfeiffer);
    CHECK(difference(pfeiffer.apply(out, x), out + network(pfeiffer, out + x, at::relu)) < 1e-5);
  }
  {
    BottleneckAdapter parallel(32, bottleneck_preset("parallel"));
    randomise(parallel);
    CHECK(parallel.named_parameters()["adapter_down.0.weight"].sizes() == at::IntArrayRef({16, 32}));
    CHECK(difference(parallel.apply(out, x), out + 4 * network(parallel, x, at::relu)) < 1e-4);
  }
}

TEST_CASE("a learned scale starts at one and has a gradient", "[adapters]") {
  auto options = bottleneck_preset("parallel");
  options.learn_scaling = true;
  BottleneckAdapter adapter(16, options);
  randomise(adapter);
  const at::Tensor scaling = adapter.named_parameters()["scaling"];
  {
    const torch::NoGradGuard no_grad;
    scaling.fill_(2.5);
  }
  const at::Tensor out = at::randn({4, 16}), x = at::randn({4, 16});
  const at::Tensor y = adapter.apply(out, x);
  CHECK(difference(y, out + 2.5 * network(adapter, x, at::relu)) < 1e-4);
  y.sum().backward();
  CHECK(scaling.grad().item<double>() == Approx(network(adapter, x, at::relu).sum().item<double>()).epsilon(1e-4));
}

TEST_CASE("bottleneck adapters begin near the identity, or at it", "[adapters]") {
  const at::Tensor out = at::randn({4, 64}), x = at::randn({4, 64});
  BottleneckAdapter near(64, bottleneck_preset("pfeiffer"));
  CHECK(difference(near.apply(out, x), out) < 0.05);
  CHECK(difference(near.apply(out, x), out) > 0);
  auto options = bottleneck_preset("pfeiffer");
  options.init = "zero";
  BottleneckAdapter at_it(64, options);
  CHECK(difference(at_it.apply(out, x), out) == 0);
}

TEST_CASE("bottleneck options are checked", "[adapters]") {
  const auto refused = [](const std::function<void(BottleneckOptions&)>& change, const std::string& key) {
    BottleneckOptions options;
    change(options);
    CHECK(message_of<ConfigError>([&] { BottleneckAdapter(32, options); }).find(key) != std::string::npos);
  };
  refused([](auto& options) { options.reduction_factor = 0; }, "reduction_factor");
  refused([](auto& options) { options.reduction_factor = 64; }, "reduction_factor");
  refused([](auto& options) { options.reduction_factor = 1e-9; }, "reduction_factor");
  refused([](auto& options) { options.non_linearity = "softmax"; }, "non_linearity");
  refused([](auto& options) { options.init = "zeros"; }, "init_weights");
  refused([](auto& options) { options.dropout = 1; }, "dropout");
  CHECK(message_of<ConfigError>([] { bottleneck_preset("pfeifer"); }).find("pfeiffer") != std::string::npos);
}
