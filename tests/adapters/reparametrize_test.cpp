#include "lora/adapters/reparametrize.h"

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>

#include "adapters/fake_llama.h"
#include "lora/core/error.h"
#include "support.h"

using namespace lora;
using testing::difference;
using testing::message_of;

namespace {

struct Stock {
  torch::nn::Linear first{6, 8}, second{8, 3};
  torch::nn::Sequential net{first, torch::nn::Tanh(), second};
  at::Tensor x = at::randn({10, 6}), target = at::randn({10, 3});

  at::Tensor loss() { return (net->forward(x) - target).square().mean(); }
};

}  // namespace

TEST_CASE("a stock layer computes as before, then with the update", "[adapters]") {
  Stock stock;
  const auto before = stock.net->forward(stock.x);
  auto lora = reparametrize(stock.first, {.rank = 2, .alpha = 4});
  CHECK(at::equal(stock.net->forward(stock.x), before));
  testing::randomize(lora.adapter().parameters());
  lora.refresh();
  const auto base = stock.first->named_parameters()["weight"];
  const auto hidden = at::tanh(at::linear(stock.x, base, stock.first->bias) + lora.adapter().delta(stock.x));
  CHECK(difference(stock.net->forward(stock.x), stock.second->forward(hidden)) < 1e-6);
  lora.remove();
  CHECK(at::equal(stock.net->forward(stock.x), before));
  CHECK(stock.first->named_parameters().size() == 2);
}

TEST_CASE("gradients reach the factors alone, as in the slot", "[adapters]") {
  Stock stock;
  auto lora = reparametrize(stock.first, {.rank = 2, .alpha = 4});
  testing::randomize(lora.adapter().parameters());
  lora.refresh();
  stock.loss().backward();
  CHECK_FALSE(stock.first->named_parameters()["weight"].grad().defined());
  CHECK_FALSE(stock.first->bias.grad().defined());
  CHECK(stock.second->weight.grad().defined());
  const auto grad_a = lora.adapter().lora_A.grad().clone();
  const auto grad_b = lora.adapter().lora_B.grad().clone();

  // The same layer as a slot.
  nn::Linear slot(6, 8, true);
  {
    const torch::NoGradGuard no_grad;
    slot->weight.copy_(stock.first->named_parameters()["weight"]);
    slot->bias.copy_(stock.first->bias);
  }
  auto same = std::make_shared<LoraLinear>(slot->layout(), 2, 4, LoraOptions{});
  {
    const torch::NoGradGuard no_grad;
    same->lora_A.copy_(lora.adapter().lora_A);
    same->lora_B.copy_(lora.adapter().lora_B);
  }
  slot->attach("default", same);
  slot->slot.set_active({"default"});
  (stock.second->forward(at::tanh(slot->forward(stock.x))) - stock.target).square().mean().backward();
  CHECK(difference(same->lora_A.grad(), grad_a) < 1e-7);
  CHECK(difference(same->lora_B.grad(), grad_b) < 1e-7);
}

TEST_CASE("training a stock layer lowers the loss, and merging keeps it", "[adapters]") {
  at::manual_seed(2);
  Stock stock;
  auto lora = reparametrize(stock.first, {.rank = 4, .alpha = 8});
  const double before = stock.loss().item<double>();
  for (int step = 0; step < 100; ++step) {
    lora.refresh();
    for (auto& parameter : lora.adapter().parameters()) parameter.mutable_grad() = at::Tensor();
    stock.loss().backward();
    const torch::NoGradGuard no_grad;
    for (auto& parameter : lora.adapter().parameters()) parameter.sub_(0.3 * parameter.grad());
  }
  lora.refresh();
  const auto trained = stock.net->forward(stock.x);
  CHECK(stock.loss().item<double>() < 0.9 * before);
  lora.merge();
  CHECK(stock.first->weight.is_leaf());
  CHECK(difference(stock.net->forward(stock.x), trained) < 1e-6);
}

TEST_CASE("the update follows a cast of the model", "[adapters]") {
  Stock stock;
  auto lora = reparametrize(stock.first, {.rank = 2});
  testing::randomize(lora.adapter().parameters());
  stock.net->to(at::kDouble);
  lora.refresh();
  CHECK(stock.first->weight.scalar_type() == at::kDouble);
  CHECK(stock.net->forward(stock.x.to(at::kDouble)).scalar_type() == at::kDouble);
}

TEST_CASE("what a replaced weight cannot do is refused", "[adapters]") {
  torch::nn::Linear layer(4, 4);
  message_of<ConfigError>([&] { reparametrize(layer, {.dropout = 0.1}); });
  message_of<ConfigError>([&] { reparametrize(layer, {.rank = 0}); });
  auto lora = reparametrize(layer, {});
  message_of<ConfigError>([&] { reparametrize(layer, {}); });
  const auto base = layer->named_parameters()["weight"].detach().clone();
  {
    const torch::NoGradGuard no_grad;
    lora.adapter().lora_B.fill_(INFINITY);
  }
  message_of<NonFiniteError>([&] { lora.merge(); });
  CHECK(at::equal(layer->named_parameters()["weight"], base));
}
