// The program of docs/adapters.md.
#include <torch/optim/adamw.h>

#include <cstdio>

#include "lora/adapters/adapter_io.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "support.h"

namespace {

struct NetImpl : torch::nn::Module {
  NetImpl()
      : up(register_module("up", lora::nn::Linear(6, 32, /*bias=*/true))),
        down(register_module("down", lora::nn::Linear(32, 3, /*bias=*/true))) {}
  at::Tensor forward(const at::Tensor& x) { return down->forward(at::tanh(up->forward(x))); }
  lora::nn::Linear up, down;
};
TORCH_MODULE(Net);

std::string fine_tune(Net model, const at::Tensor& x, const at::Tensor& target, const lora::Path& directory) {
  const auto adapters = lora::inject(*model, {.rank = 4, .alpha = 8, .targets = std::vector<std::string>{"up"}});
  const auto report = lora::freeze_base(*model, adapters);

  torch::optim::AdamW optimizer(adapters.parameters(), torch::optim::AdamWOptions(1e-2));
  for (int step = 0; step < 100; ++step) {
    optimizer.zero_grad();
    (model->forward(x) - target).square().mean().backward();
    optimizer.step();
  }
  lora::save_adapter(adapters, directory);
  return report.summary();
}

at::Tensor use(Net model, const at::Tensor& x, const lora::Path& directory) {
  auto adapters = lora::load_adapter(*model, directory);
  adapters.merge();
  return model->forward(x);
}

}  // namespace

TEST_CASE("the documented program fine-tunes, saves, loads and merges", "[adapters]") {
  at::manual_seed(1);
  const auto x = at::randn({20, 6}), target = at::randn({20, 3});
  Net model, fresh;
  {
    const torch::NoGradGuard no_grad;
    for (const auto& parameter : model->named_parameters()) {
      at::Tensor(fresh->named_parameters()[parameter.key()]).copy_(parameter.value());
    }
  }
  const auto loss = [&](const at::Tensor& y) { return (y - target).square().mean().item<double>(); };
  const double before = loss(model->forward(x));
  const lora::testing::ScratchFolder folder;
  CHECK(fine_tune(model, x, target, folder / "adapter") == "trainable params: 152 || all params: 475 || trainable%: 32.0000");
  const auto tuned = model->forward(x);
  CHECK(loss(tuned) < 0.7 * before);
  CHECK((use(fresh, x, folder / "adapter") - tuned).abs().max().item<double>() < 1e-6);
}
