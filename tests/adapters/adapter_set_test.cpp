#include "lora/adapters/adapter_set.h"

#include "adapters/fake_llama.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "support.h"

using namespace lora;
using testing::difference;
using testing::FakeLlama;
using testing::message_of;
using Names = std::vector<std::string>;

namespace {

const testing::FakeSizes kSmall{.hidden = 8, .intermediate = 12, .vocab = 128, .layers = 2};
const Names kTargets = {"q_proj", "down_proj", "embed_tokens", "lm_head"};

std::vector<at::Tensor> weights_of(const AdapterSet& set) {
  std::vector<at::Tensor> weights;
  for (const auto& slot : set.slots()) {
    weights.push_back((slot.linear.is_empty() ? slot.embedding->weight : slot.linear->weight).detach().clone());
  }
  return weights;
}

/// An adapter whose only trait is a term of the loss.
struct Weighty : nn::Adapter {
  explicit Weighty(double value) : value(value) {}
  at::Tensor delta(const at::Tensor& x) override { return at::zeros_like(x); }
  at::Tensor weight_delta() const override { return {}; }
  at::Tensor regularizer() const override { return at::full({}, value); }
  double value;
};

}  // namespace

TEST_CASE("an adapter that is switched off leaves the base model", "[adapters]") {
  FakeLlama model(kSmall);
  const auto ids = testing::some_ids();
  const auto base = model.forward(ids);
  auto set = inject(model, {.targets = Names{"q_proj"}, .modules_to_save = {"lm_head"}});
  testing::randomize(set.parameters());
  const auto adapted = model.forward(ids);
  set.set_enabled(false);
  CHECK(at::equal(model.forward(ids), base));
  set.set_enabled(false);
  CHECK(at::equal(model.forward(ids), base));
  set.set_enabled(true);
  CHECK(at::equal(model.forward(ids), adapted));
}

TEST_CASE("a merged model computes the same without its adapters", "[adapters]") {
  FakeLlama model(kSmall);
  model.to(at::kDouble);
  const auto ids = testing::some_ids();
  auto set = inject(model, {.targets = kTargets});
  for (const auto& slot : set.slots()) slot.adapter->to(at::kDouble);
  testing::randomize(set.parameters());
  const auto adapted = model.forward(ids);
  const auto before = weights_of(set);
  set.merge();
  CHECK(difference(model.forward(ids), adapted) < 1e-12);
  for (const auto& slot : set.slots()) {
    const auto& contributing = slot.linear.is_empty() ? slot.embedding->slot : slot.linear->slot;
    CHECK(contributing.contributing().empty());
  }
  message_of<ConfigError>([&] { set.merge(); });
  set.unmerge();
  const auto after = weights_of(set);
  for (size_t i = 0; i < before.size(); ++i) CHECK(difference(after[i], before[i]) < 1e-14);
  CHECK(difference(model.forward(ids), adapted) < 1e-12);
  set.unmerge();
}

TEST_CASE("merging in fp32 keeps the output within rounding", "[adapters]") {
  FakeLlama model(kSmall);
  const auto ids = testing::some_ids();
  auto set = inject(model, {.targets = kTargets});
  testing::randomize(set.parameters());
  const auto adapted = model.forward(ids);
  set.merge();
  CHECK(difference(model.forward(ids), adapted) < 1e-5 * adapted.abs().max().item<double>());
}

TEST_CASE("switching off a merged adapter takes it out of the weights", "[adapters]") {
  FakeLlama model(kSmall);
  const auto ids = testing::some_ids();
  const auto base = model.forward(ids);
  auto set = inject(model, {});
  testing::randomize(set.parameters());
  set.merge();
  set.set_enabled(false);
  CHECK(difference(model.forward(ids), base) < 1e-5);
  message_of<ConfigError>([&] { set.merge(); });
}

TEST_CASE("a merge that would not be finite changes nothing", "[adapters]") {
  FakeLlama model(kSmall);
  model.to(at::kBFloat16);
  auto set = inject(model, {.targets = Names{"q_proj"}});
  testing::randomize(set.parameters());
  {
    const torch::NoGradGuard no_grad;
    set.parameters().back()[3][0] = INFINITY;  // B of the last slot
  }
  const auto before = weights_of(set);
  message_of<NonFiniteError>([&] { set.merge(); });
  const auto after = weights_of(set);
  for (size_t i = 0; i < before.size(); ++i) CHECK(at::equal(after[i], before[i]));
  for (const auto& slot : set.slots()) CHECK(slot.linear->slot.merged().empty());
}

TEST_CASE("merging keeps modules to save and the weight's type", "[adapters]") {
  FakeLlama model(kSmall);
  model.to(at::kBFloat16);
  auto set = inject(model, {.targets = Names{"q_proj"}, .modules_to_save = {"lm_head"}});
  testing::randomize(set.parameters());
  const auto head = model.lm_head->weight.detach().clone();
  const auto& slot = set.slots().front();
  const auto exact = slot.linear->weight.to(at::kFloat) + slot.adapter->weight_delta();
  set.merge();
  CHECK(slot.linear->weight.scalar_type() == at::kBFloat16);
  CHECK(at::equal(slot.linear->weight, exact.to(at::kBFloat16)));
  CHECK(at::equal(model.lm_head->weight, head));
}

TEST_CASE("gradients reach every trained parameter and no frozen one", "[adapters]") {
  FakeLlama model(kSmall);
  for (auto& parameter : model.parameters()) parameter.set_requires_grad(false);
  const auto set = inject(model, {.targets = kTargets, .modules_to_save = {"norm"}});
  testing::randomize(set.parameters());
  model.forward(testing::some_ids()).square().mean().backward();
  for (const auto& [name, parameter] : set.named_parameters()) {
    INFO(name);
    REQUIRE(parameter.grad().defined());
    CHECK(parameter.grad().count_nonzero().item<int64_t>() > 0);
  }
  CHECK_FALSE(set.slots().front().embedding->weight.grad().defined());
}

TEST_CASE("regularizers add up and LoRA has none", "[adapters]") {
  FakeLlama model(kSmall);
  const auto set = inject(model, {});
  CHECK_FALSE(set.regularizer().defined());
  auto& slots = const_cast<std::vector<AdapterSet::Slot>&>(set.slots());
  slots[0].adapter = std::make_shared<Weighty>(2);
  slots[2].adapter = std::make_shared<Weighty>(3);
  CHECK(set.regularizer().item<double>() == 5);
}

TEST_CASE("training an adapter lowers the loss and leaves the base", "[adapters]") {
  at::manual_seed(4);
  FakeLlama model(kSmall);
  for (auto& parameter : model.parameters()) parameter.set_requires_grad(false);
  const auto set = inject(model, {.alpha = 16, .targets = Names{"lm_head", "down_proj"}});
  const auto base = weights_of(set);
  const auto ids = testing::some_ids();
  const auto loss = [&] { return at::cross_entropy_loss(model.forward(ids).view({-1, 128}), ids.roll(1, 1).view({-1})); };
  const double first = loss().item<double>();
  for (int step = 0; step < 30; ++step) {
    for (auto& parameter : set.parameters()) parameter.mutable_grad() = at::Tensor();
    loss().backward();
    const torch::NoGradGuard no_grad;
    for (auto& parameter : set.parameters()) parameter.sub_(0.1 * parameter.grad());
  }
  CHECK(loss().item<double>() < 0.5 * first);
  const auto after = weights_of(set);
  for (size_t i = 0; i < base.size(); ++i) CHECK(at::equal(after[i], base[i]));
}
