// LoRA on a model of your own: write lora::nn::Linear where torch::nn::Linear stood, and everything else follows.
#include <lora/lora.h>
#include <torch/nn/modules/container/modulelist.h>

#include <ATen/ATen.h>
#include <cstdio>

/// A small network that predicts sin(x1) + x2.
class NetImpl : public torch::nn::Module {
 public:
  NetImpl() {
    hidden = register_module("hidden", lora::nn::Linear(2, 64, /*bias=*/true));
    output = register_module("output", lora::nn::Linear(64, 1, /*bias=*/true));
  }
  at::Tensor forward(const at::Tensor& x) { return output->forward(at::tanh(hidden->forward(x))); }

  lora::nn::Linear hidden{nullptr}, output{nullptr};
};
TORCH_MODULE(Net);

int main() {
  lora::seed_generators(0);
  Net net;
  const at::Tensor x = at::randn({256, 2});
  const at::Tensor y = (x.select(1, 0).sin() + x.select(1, 1)).unsqueeze(1);

  const auto adapters = lora::inject(*net, {.rank = 4, .alpha = 8, .targets = std::vector<std::string>{"hidden", "output"}});
  std::puts(lora::freeze_base(*net, adapters).summary().c_str());

  const auto optimizer =
      lora::train::make_optimizer(lora::train::parameter_groups(adapters.named_parameters(), {.lr = 1e-2}), {.lr = 1e-2});
  double first = 0, last = 0;
  for (int step = 0; step < 200; ++step) {
    const at::Tensor loss = (net->forward(x) - y).square().mean();
    loss.backward();
    optimizer->step(1e-2);
    optimizer->zero_grad();
    last = loss.item<double>();
    if (step == 0) first = last;
  }
  std::printf("loss %.4f -> %.4f\n", first, last);

  // Folded into the base weights the network gives the same numbers without the adapter's cost.
  auto merged = adapters;
  const at::Tensor before = net->forward(x);
  merged.merge();
  const double difference = (net->forward(x) - before).abs().max().item<double>();
  std::printf("merged: largest difference %.1e\n", difference);
  return last < 0.1 * first && difference < 1e-4 ? 0 : 1;
}
