#include "lora/adapters/adalora.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <functional>
#include <numeric>

#include "adapters/fake_llama.h"
#include "lora/adapters/adapter_io.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "support.h"

using namespace lora;
using testing::difference;
using testing::FakeLlama;
using testing::message_of;

namespace {

const testing::FakeSizes kSmall{.hidden = 8, .intermediate = 12, .vocab = 16, .layers = 2};

AdaLoraOptions options_for(int64_t steps) {
  AdaLoraOptions options;
  options.init_rank = 4;
  options.target_rank = 2;
  options.initial_steps = 1;
  options.final_steps = 2;
  options.interval = 1;
  options.total_steps = steps;
  return options;
}

/// Gradients as a loss would leave them.
void put_gradients(const AdapterSet& adapters, double factor = 1) {
  for (auto& parameter : adapters.parameters()) parameter.mutable_grad() = at::randn_like(parameter) * factor;
}

void randomise(const AdapterSet& adapters) {
  const torch::NoGradGuard no_grad;
  for (auto& parameter : adapters.parameters()) parameter.normal_();
}

int64_t sum(const std::vector<int64_t>& values) { return std::accumulate(values.begin(), values.end(), int64_t{0}); }

}  // namespace

TEST_CASE("the budget falls cubically from all ranks to the target", "[adapters]") {
  FakeLlama model(kSmall);
  const auto adapters = inject(model, options_for(12));
  const auto& allocator = *adapters.allocator();
  CHECK(allocator.budget(1) == 16);
  CHECK(allocator.budget(10) == 8);
  CHECK(allocator.budget(11) == 8);
  // 8 (1 - 3 / 9)^3 + 8
  CHECK(allocator.budget(4) == 10);
  CHECK_FALSE(allocator.allocates(1));
  CHECK(allocator.allocates(2));
  CHECK(allocator.allocates(10));
  CHECK_FALSE(allocator.allocates(11));
}

TEST_CASE("ranks are pruned to the budget, and stay pruned at the end", "[adapters]") {
  at::manual_seed(3);
  FakeLlama model(kSmall);
  AdapterSet adapters = inject(model, options_for(8));
  randomise(adapters);
  for (int64_t step = 1; step <= 8; ++step) {
    put_gradients(adapters);
    adapters.after_step(step, /*has_gradients=*/true);
    CHECK(sum(adapters.allocator()->ranks()) == adapters.allocator()->budget(step));
    const torch::NoGradGuard no_grad;
    for (const auto& slot : adapters.slots()) dynamic_cast<AdaLoraLinear&>(*slot.adapter).lora_E.add_(0.1);
  }
  adapters.after_step(9, true);
  int64_t left = 0;
  for (const auto& slot : adapters.slots()) {
    left += dynamic_cast<AdaLoraLinear&>(*slot.adapter).lora_E.count_nonzero().item<int64_t>();
  }
  CHECK(left == 8);
}

TEST_CASE("equal ranks at start and end prune nothing", "[adapters]") {
  FakeLlama model(kSmall);
  auto options = options_for(6);
  options.target_rank = options.init_rank;
  AdapterSet adapters = inject(model, options);
  randomise(adapters);
  for (int64_t step = 1; step <= 6; ++step) {
    put_gradients(adapters);
    adapters.after_step(step, true);
  }
  CHECK(adapters.allocator()->ranks() == std::vector<int64_t>{4, 4, 4, 4});
  const auto files = adapter_to_files(adapters);
  CHECK(files.tensors.at("base_model.model.model.layers.0.self_attn.q_proj.lora_E").size(0) == 4);
}

TEST_CASE("steps without gradients leave the averages, and without any there is nothing to prune by", "[adapters]") {
  FakeLlama model(kSmall);
  AdapterSet adapters = inject(model, options_for(8));
  randomise(adapters);
  for (int64_t step = 1; step <= 3; ++step) adapters.after_step(step, /*has_gradients=*/false);
  CHECK_FALSE(adapters.allocator()->kept());
  put_gradients(adapters);
  adapters.after_step(4, true);
  const auto before = adapters.allocator()->state().at("importance.model.layers.0.self_attn.q_proj.lora_A").clone();
  put_gradients(adapters, 100);
  adapters.after_step(5, false);
  CHECK(at::equal(adapters.allocator()->state().at("importance.model.layers.0.self_attn.q_proj.lora_A"), before));
}

TEST_CASE("between allocations, while pruned ranks grow again, the file holds all ranks", "[adapters]") {
  FakeLlama model(kSmall);
  AdapterSet adapters = inject(model, options_for(8));
  randomise(adapters);
  put_gradients(adapters);
  adapters.after_step(1, true);
  put_gradients(adapters);
  adapters.after_step(2, true);
  const auto ranks_in_file = [&] {
    int64_t ranks = 0;
    for (const auto& [name, tensor] : adapter_to_files(adapters).tensors) {
      if (name.ends_with("lora_E")) ranks += tensor.size(0);
    }
    return ranks;
  };
  CHECK(ranks_in_file() == adapters.allocator()->budget(2));
  {
    const torch::NoGradGuard no_grad;
    for (const auto& slot : adapters.slots()) dynamic_cast<AdaLoraLinear&>(*slot.adapter).lora_E.add_(1);
  }
  CHECK(ranks_in_file() == 16);
  CHECK_FALSE(std::get<formats::PeftAdaLoraConfig>(adapter_to_files(adapters).config).rank_pattern);
}

TEST_CASE("the regulariser is the mean distance from orthogonality, and has a gradient at none", "[adapters]") {
  FakeLlama model(kSmall);
  const auto adapters = inject(model, options_for(8));
  double wanted = 0;
  for (const auto& slot : adapters.slots()) {
    const auto& linear = dynamic_cast<const AdaLoraLinear&>(*slot.adapter);
    wanted += (linear.lora_A.mm(linear.lora_A.t()) - at::eye(4)).norm().item<double>();
    wanted += (linear.lora_B.t().mm(linear.lora_B) - at::eye(4)).norm().item<double>();
  }
  CHECK(adapters.regularizer().item<double>() == Approx(0.5 * wanted / 8).epsilon(1e-5));
  {
    const torch::NoGradGuard no_grad;
    for (const auto& slot : adapters.slots()) {
      auto& linear = dynamic_cast<AdaLoraLinear&>(*slot.adapter);
      linear.lora_A.zero_().fill_diagonal_(1);
      linear.lora_B.zero_().fill_diagonal_(1);
    }
  }
  adapters.regularizer().backward();
  for (const auto& slot : adapters.slots()) {
    CHECK(dynamic_cast<AdaLoraLinear&>(*slot.adapter).lora_A.grad().abs().max().item<double>() == 0);
  }
}

TEST_CASE("AdaLoRA's options are checked", "[adapters]") {
  const auto refused = [](const std::function<void(AdaLoraOptions&)>& change, const std::string& key) {
    FakeLlama model(kSmall);
    auto options = options_for(8);
    change(options);
    const auto text = message_of<ConfigError>([&] { inject(model, options); });
    CHECK(text.find(key) != std::string::npos);
    CHECK(adapters_of(model).empty());
  };
  refused([](auto& options) { options.total_steps = 0; }, "total_step");
  refused([](auto& options) { options.total_steps = 3; }, "tinit");
  refused([](auto& options) { options.target_rank = 5; }, "target_r");
  refused([](auto& options) { options.init_rank = 0; }, "init_r");
  refused([](auto& options) { options.beta1 = 1; }, "beta1");
  refused([](auto& options) { options.interval = 0; }, "deltaT");
  refused([](auto& options) { options.targets = std::vector<std::string>{"embed_tokens"}; }, "embed_tokens");
}

TEST_CASE("a training state of other modules or shapes is refused, with nothing changed", "[adapters]") {
  FakeLlama model(kSmall);
  AdapterSet adapters = inject(model, options_for(8));
  randomise(adapters);
  put_gradients(adapters);
  adapters.after_step(1, true);
  auto state = adapters.training_state();
  for (auto& [name, tensor] : state) tensor = tensor.clone();
  const auto first = adapters.parameters().front().clone();
  auto missing = state;
  missing.erase(missing.begin());
  CHECK_THROWS_AS(adapters.load_training_state(missing), ShapeError);
  auto more = state;
  more["allocator.importance.other"] = at::zeros({1});
  CHECK_THROWS_AS(adapters.load_training_state(more), ShapeError);
  auto misshapen = state;
  for (auto& [name, tensor] : misshapen) {
    if (name.starts_with("value.")) tensor = at::zeros({1});
  }
  CHECK_THROWS_AS(adapters.load_training_state(misshapen), ShapeError);
  CHECK(at::equal(adapters.parameters().front(), first));
  adapters.load_training_state(state);
}
