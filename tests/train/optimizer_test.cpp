#include "lora/train/optimizer.h"

#include <ATen/ATen.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include <cmath>

#include "lora/core/error.h"
#include "lora/ops/device.h"
#include "support.h"
#include "train/tiny_model.h"

using namespace lora;
using train::make_optimizer;
using train::NamedParameters;
using train::OptimizerOptions;
using train::parameter_groups;

namespace {

NamedParameters two_parameters(at::ScalarType dtype = at::kFloat) {
  seed_generators(7);
  return {{"a.weight", at::randn({5, 33}, dtype).requires_grad_()}, {"b.weight", at::randn({70}, dtype).requires_grad_()}};
}

/// The gradient of step `step`: the same for every optimizer that is compared.
void set_gradients(const NamedParameters& parameters, int step) {
  seed_generators(static_cast<uint64_t>(100 + step));
  for (const auto& [name, parameter] : parameters) {
    parameter.mutable_grad() = at::randn(parameter.sizes()).to(parameter.scalar_type());
  }
}

std::vector<at::Tensor> clones(const NamedParameters& parameters) {
  std::vector<at::Tensor> copies;
  for (const auto& entry : parameters) {
    copies.push_back(entry.second.detach().clone().requires_grad_());
  }
  return copies;
}

void copy_gradients(const NamedParameters& from, std::vector<at::Tensor>& to) {
  for (size_t i = 0; i < to.size(); ++i) to[i].mutable_grad() = from[i].second.grad().clone();
}

double distance(const NamedParameters& a, const std::vector<at::Tensor>& b) {
  double largest = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    largest = std::max(largest, (a[i].second - b[i]).abs().max().item<double>());
  }
  return largest;
}

std::vector<std::string> names_of(const train::ParameterGroup& group) {
  std::vector<std::string> names;
  for (const auto& entry : group.parameters) names.push_back(entry.first);
  return names;
}

}  // namespace

TEST_CASE("AdamW equals torch.optim.AdamW", "[train]") {
  const auto dtype = GENERATE(at::kFloat, at::kDouble);
  const double decay = GENERATE(0.0, 0.01, 0.5);
  const auto parameters = two_parameters(dtype);
  auto expected = clones(parameters);
  const OptimizerOptions options{.lr = 5e-3, .beta1 = 0.8, .beta2 = 0.95, .eps = 1e-6, .weight_decay = decay};
  const auto optimizer = make_optimizer(parameter_groups(parameters, options), options);
  torch::optim::AdamW reference(expected, torch::optim::AdamWOptions(5e-3).betas({0.8, 0.95}).eps(1e-6).weight_decay(decay));
  for (int step = 0; step < 30; ++step) {
    set_gradients(parameters, step);
    copy_gradients(parameters, expected);
    optimizer->step(options.lr);
    reference.step();
  }
  CHECK(distance(parameters, expected) < (dtype == at::kDouble ? 1e-14 : 1e-6));
}

TEST_CASE("SGD equals torch.optim.SGD", "[train]") {
  const double momentum = GENERATE(0.0, 0.9), decay = GENERATE(0.0, 0.1);
  const auto parameters = two_parameters();
  auto expected = clones(parameters);
  const OptimizerOptions options{.type = "sgd", .lr = 0.05, .weight_decay = decay, .momentum = momentum};
  const auto optimizer = make_optimizer(parameter_groups(parameters, options), options);
  torch::optim::SGD reference(expected, torch::optim::SGDOptions(0.05).momentum(momentum).weight_decay(decay));
  for (int step = 0; step < 30; ++step) {
    set_gradients(parameters, step);
    copy_gradients(parameters, expected);
    optimizer->step(options.lr);
    reference.step();
  }
  CHECK(distance(parameters, expected) < 1e-6);
}

TEST_CASE("without bias correction the moments are used as they are", "[train]") {
  const auto dtype = GENERATE(at::kDouble, at::kBFloat16);  // LibTorch's operation and our kernel
  const NamedParameters parameters = {{"w", at::tensor({1.0, -2.0}, at::kDouble).to(dtype).requires_grad_()}};
  const OptimizerOptions options{.weight_decay = 0.1, .bias_correction = false};
  const auto optimizer = make_optimizer(parameter_groups(parameters, options), options);
  double weights[2] = {1.0, -2.0}, m[2] = {0, 0}, v[2] = {0, 0};
  for (int step = 0; step < 20; ++step) {
    const at::Tensor gradients = at::tensor({std::sin(step + 1.0), std::cos(3.0 * step)}, at::kDouble).to(dtype);
    parameters[0].second.mutable_grad() = gradients;
    optimizer->step(0.01);
    for (int i = 0; i < 2; ++i) {
      const double gradient = gradients[i].item<double>();
      m[i] = 0.9 * m[i] + 0.1 * gradient;
      v[i] = 0.999 * v[i] + 0.001 * gradient * gradient;
      weights[i] -= 0.01 * (m[i] / (std::sqrt(v[i]) + 1e-8) + 0.1 * weights[i]);
    }
  }
  const auto found = dtype == at::kDouble ? parameters[0].second : optimizer->state().at("master.w");
  const double tolerance = dtype == at::kDouble ? 1e-12 : 1e-5;
  CHECK(found[0].item<double>() == Approx(weights[0]).epsilon(tolerance));
  CHECK(found[1].item<double>() == Approx(weights[1]).epsilon(tolerance));
  CHECK(optimizer->state().at("step.w").item<double>() == 20);
}

TEST_CASE("parameters in half precision follow a copy in fp32", "[train]") {
  const auto dtype = GENERATE(at::kBFloat16, at::kHalf);
  const std::string type = GENERATE("adamw", "sgd");
  const auto half = two_parameters(dtype);
  NamedParameters full, exact;
  for (const auto& [name, parameter] : half) {
    full.emplace_back(name, parameter.detach().to(at::kFloat).requires_grad_());
    exact.emplace_back(name, parameter.detach().to(at::kDouble).requires_grad_());
  }
  const OptimizerOptions options{.type = type, .weight_decay = 0.1, .momentum = 0.5};
  const auto half_optimizer = make_optimizer(parameter_groups(half, options), options);
  const auto full_optimizer = make_optimizer(parameter_groups(full, options), options);
  const auto exact_optimizer = make_optimizer(parameter_groups(exact, options), options);
  for (int step = 0; step < 50; ++step) {
    set_gradients(half, step);
    for (size_t i = 0; i < full.size(); ++i) {
      full[i].second.mutable_grad() = half[i].second.grad().to(at::kFloat);
      exact[i].second.mutable_grad() = half[i].second.grad().to(at::kDouble);
    }
    half_optimizer->step(1e-4);  // most single updates are too small for half precision
    full_optimizer->step(1e-4);
    exact_optimizer->step(1e-4);
  }
  for (size_t i = 0; i < full.size(); ++i) {
    const auto master = half_optimizer->state().at("master." + half[i].first);
    CHECK(half[i].second.equal(master.to(dtype)));
    // As near the update in double as the one in fp32 is.
    const double error = (master - exact[i].second).abs().max().item<double>();
    const double fp32_error = (full[i].second - exact[i].second).abs().max().item<double>();
    CHECK(error <= 1.2 * fp32_error);
    CHECK(fp32_error < 1e-5);
    CHECK((master - half[i].second.to(at::kFloat)).abs().max().item<double>() > 0);
  }
}

TEST_CASE("the update of bf16 parameters is torch.optim.AdamW's, with a large eps and a gradient factor", "[train]") {
  const auto half = two_parameters(at::kBFloat16);
  std::vector<at::Tensor> expected;
  for (const auto& entry : half) expected.push_back(entry.second.detach().to(at::kDouble).requires_grad_());
  const OptimizerOptions options{.beta1 = 0.8, .beta2 = 0.95, .eps = 0.3, .weight_decay = 0.2};
  const auto optimizer = make_optimizer(parameter_groups(half, options), options);
  torch::optim::AdamW reference(expected, torch::optim::AdamWOptions(0.01).betas({0.8, 0.95}).eps(0.3).weight_decay(0.2));
  for (int step = 0; step < 20; ++step) {
    set_gradients(half, step);
    for (size_t i = 0; i < expected.size(); ++i) expected[i].mutable_grad() = half[i].second.grad().to(at::kDouble) * 0.75;
    optimizer->step(0.01, 0.75);
    reference.step();
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    const auto master = optimizer->state().at("master." + half[i].first);
    CHECK((master - expected[i]).abs().max().item<double>() < 2e-6);
  }
}

TEST_CASE("without masters a parameter in half precision is rounded after every update", "[train]") {
  const auto dtype = GENERATE(at::kBFloat16, at::kHalf);
  const std::string type = GENERATE("adamw", "sgd");
  const bool widened = GENERATE(false, true);  // as gradients are that a loss scale multiplied
  const auto half = two_parameters(dtype);
  auto expected = clones(half);
  const OptimizerOptions options{.type = type, .lr = 0.01, .weight_decay = 0.1, .momentum = 0.5, .master_weights = false};
  const auto optimizer = make_optimizer(parameter_groups(half, options), options);
  for (const auto& [name, tensor] : optimizer->state()) CHECK_FALSE(name.starts_with("master"));
  std::vector<at::Tensor> m, v;  // in double
  for (const auto& tensor : expected) {
    m.push_back(at::zeros_like(tensor, at::kDouble));
    v.push_back(at::zeros_like(tensor, at::kDouble));
  }
  double largest = 0, moved = 0;
  for (int step = 0; step < 20; ++step) {
    const at::NoGradGuard no_grad;
    set_gradients(half, step);
    if (widened) optimizer->gradients(/*widen=*/true);
    std::vector<at::Tensor> gradients;
    for (const auto& entry : half) gradients.push_back((entry.second.grad() * 0.75).to(dtype).to(at::kDouble));
    optimizer->step(options.lr, 0.75);
    for (size_t i = 0; i < expected.size(); ++i) {
      // Each step begins from what the optimizer left, so that a rounding to the other neighbour is not carried on.
      at::Tensor value = expected[i].to(at::kDouble);
      if (type == "adamw") {
        m[i] = 0.9 * m[i] + 0.1 * gradients[i];
        v[i] = 0.999 * v[i] + 0.001 * gradients[i].square();
        const at::Tensor direction =
            m[i] / (1 - std::pow(0.9, step + 1)) / ((v[i] / (1 - std::pow(0.999, step + 1))).sqrt() + 1e-8);
        value = value * (1 - 0.01 * 0.1) - 0.01 * direction;
      } else {
        m[i] = 0.5 * m[i] + gradients[i] + 0.1 * value;
        value = value - 0.01 * m[i];
      }
      const at::Tensor found = half[i].second.detach();
      const at::Tensor spacing = found.to(at::kDouble).abs().clamp_min(1e-3) * (dtype == at::kHalf ? 0x1p-11 : 0x1p-8);
      largest = std::max(largest, ((found.to(at::kDouble) - value).abs() / spacing).max().item<double>());
      moved = std::max(moved, (found - expected[i]).abs().max().item<double>());
      expected[i] = found.clone();
    }
  }
  CHECK(largest < 1.05);  // to the nearest: half a place of a number whose mantissa is small
  CHECK(moved > 0.005);
}

TEST_CASE("without masters an update that is too small for its parameter is lost", "[train]") {
  const bool master_weights = GENERATE(true, false);
  const NamedParameters parameters = {{"w", at::ones({4}, at::kHalf).requires_grad_()}};
  const OptimizerOptions options{.type = "sgd", .master_weights = master_weights};
  const auto optimizer = make_optimizer(parameter_groups(parameters, options), options);
  for (int step = 0; step < 20; ++step) {
    parameters[0].second.mutable_grad() = at::ones({4}, at::kHalf);
    optimizer->step(1e-4);  // fp16 next to 1 has steps of 4.9e-4 below it
  }
  CHECK(parameters[0].second[0].item<double>() == (master_weights ? Approx(1 - 20e-4).margin(3e-4) : Approx(1).margin(0)));
}

TEST_CASE("a gradient may be strided, or wider than its parameter", "[train]") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  const std::string type = GENERATE("adamw", "sgd");
  const auto plain = two_parameters(dtype), strided = two_parameters(dtype), wide = two_parameters(dtype);
  const OptimizerOptions options{.type = type, .momentum = 0.5};
  for (const auto* parameters : {&plain, &strided, &wide}) {
    const auto optimizer = make_optimizer(parameter_groups(*parameters, options), options);
    for (int step = 0; step < 3; ++step) {
      set_gradients(*parameters, step);
      at::Tensor& gradient = (*parameters)[0].second.mutable_grad();
      if (parameters == &strided) gradient = gradient.t().contiguous().t();
      if (parameters == &wide) optimizer->gradients(/*widen=*/true);
      optimizer->step(0.01);
    }
  }
  for (size_t i = 0; i < plain.size(); ++i) {
    CHECK((strided[i].second - plain[i].second).abs().max().item<double>() < 1e-6);
    CHECK(strided[i].second.allclose(wide[i].second, 0.01));  // one rounding of the parameter
  }
}

TEST_CASE("what does not decay stays where its gradient is zero", "[train]") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  const std::string type = GENERATE("adamw", "sgd");
  const auto parameters = two_parameters(dtype);
  const auto before = clones(parameters);
  const OptimizerOptions options{.type = type, .weight_decay = 0.5, .no_decay = {"b.weight"}};
  const auto optimizer = make_optimizer(parameter_groups(parameters, options), options);
  for (const auto& entry : parameters) entry.second.mutable_grad() = at::zeros_like(entry.second);
  optimizer->step(0.5);
  CHECK(parameters[0].second.equal((before[0].to(at::kFloat) * 0.75).to(dtype)));
  CHECK(parameters[1].second.equal(before[1]));
}

TEST_CASE("small gradients in half precision survive unscaling in fp32", "[train]") {
  const NamedParameters parameters = {{"w", at::ones({4}, at::kHalf).requires_grad_()}};
  const auto optimizer = make_optimizer(parameter_groups(parameters, {}), {});
  parameters[0].second.mutable_grad() = at::full({4}, 1e-3, at::kHalf);
  const auto gradients = optimizer->gradients();
  REQUIRE(gradients.size() == 1);
  gradients[0].div_(65536);
  CHECK(optimizer->gradients()[0][0].item<double>() == Approx(1e-3 / 65536).epsilon(1e-3));
}

TEST_CASE("parameters that are strided are updated like others", "[train]") {
  auto parameters = two_parameters();
  auto expected = clones(parameters);
  parameters[0].second = parameters[0].second.detach().t().contiguous().t().requires_grad_();
  REQUIRE_FALSE(parameters[0].second.is_contiguous());
  const OptimizerOptions options{.weight_decay = 0.1};
  const auto optimizer = make_optimizer(parameter_groups(parameters, options), options);
  torch::optim::AdamW reference(expected, torch::optim::AdamWOptions(1e-2).weight_decay(0.1));
  for (int step = 0; step < 5; ++step) {
    set_gradients(parameters, step);
    copy_gradients(parameters, expected);
    optimizer->step(1e-2);
    reference.step();
  }
  CHECK(distance(parameters, expected) < 1e-6);
}

TEST_CASE("what is remembered of all parameters under one key is one piece of memory", "[train]") {
  const NamedParameters parameters = {{"a.lora_A", at::ones({3, 5}, at::kBFloat16).requires_grad_()},
                                      {"a.norm", at::full({7}, 2.0, at::kBFloat16).requires_grad_()},
                                      {"a.lora_B", at::full({5, 3}, 3.0).requires_grad_()}};
  const OptimizerOptions options{.weight_decay = 0.1, .loraplus_lr_ratio = 4};  // three groups
  const auto optimizer = make_optimizer(parameter_groups(parameters, options), options);
  REQUIRE(optimizer->groups().size() == 3);
  const auto state = optimizer->state();
  CHECK_FALSE(state.contains("master.a.lora_B"));
  CHECK(state.at("master.a.lora_A").equal(at::ones({3, 5})));
  CHECK(state.at("master.a.norm").equal(at::full({7}, 2.0)));
  for (const std::string key : {"master", "exp_avg", "exp_avg_sq", "step"}) {
    INFO(key);
    const at::Tensor& first = state.at(key + ".a.lora_A");
    for (const auto& [name, tensor] : state) {
      if (!name.starts_with(key + ".")) continue;
      INFO(name);
      CHECK(tensor.is_contiguous());
      CHECK(tensor.storage().is_alias_of(first.storage()));
      // No part reaches into another.
      tensor.fill_(-1);
      for (const auto& [other, untouched] : state) {
        if (other != name) CHECK_FALSE((untouched == -1).any().item<bool>());
      }
      tensor.zero_();
    }
  }
}

TEST_CASE("a parameter without gradient keeps its value and its count of updates", "[train]") {
  const auto parameters = two_parameters();
  const OptimizerOptions options{.weight_decay = 0.1};
  const auto optimizer = make_optimizer(parameter_groups(parameters, options), options);
  const auto before = parameters[1].second.detach().clone();
  set_gradients(parameters, 0);
  parameters[1].second.mutable_grad() = at::Tensor();
  optimizer->step(0.1);
  CHECK(parameters[1].second.equal(before));
  CHECK(optimizer->state().at("step.b.weight").item<double>() == 0);
  CHECK(optimizer->state().at("step.a.weight").item<double>() == 1);
  CHECK(optimizer->gradients().size() == 1);
  optimizer->zero_grad();
  CHECK(optimizer->gradients().empty());
}

TEST_CASE("a gradient factor is as good as gradients multiplied before", "[train]") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  const std::string type = GENERATE("adamw", "sgd");
  const OptimizerOptions options{.type = type, .eps = 0.5, .momentum = 0.5};  // AdamW minds no factor with a small eps
  const auto with_factor = two_parameters(dtype), multiplied = two_parameters(dtype);
  const auto first = make_optimizer(parameter_groups(with_factor, options), options);
  const auto second = make_optimizer(parameter_groups(multiplied, options), options);
  for (int step = 0; step < 3; ++step) {
    set_gradients(with_factor, step);
    set_gradients(multiplied, step);
    for (const auto& entry : multiplied) entry.second.mutable_grad().mul_(0.25);  // exact in every type
    first->step(0.01, 0.25);
    second->step(0.01);
  }
  for (size_t i = 0; i < multiplied.size(); ++i) CHECK(with_factor[i].second.equal(multiplied[i].second));
  CHECK_FALSE(with_factor[0].second.equal(two_parameters(dtype)[0].second));
}

TEST_CASE("a saved optimizer goes on bit by bit", "[train]") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  const std::string type = GENERATE("adamw", "sgd");
  const bool master_weights = GENERATE(true, false);
  const OptimizerOptions options{.type = type, .weight_decay = 0.1, .momentum = 0.5, .master_weights = master_weights};
  const auto straight = two_parameters(dtype);
  const auto first = make_optimizer(parameter_groups(straight, options), options);
  for (int step = 0; step < 5; ++step) {
    set_gradients(straight, step);
    first->step(0.01);
  }
  auto resumed = two_parameters(dtype);
  const auto second = make_optimizer(parameter_groups(resumed, options), options);
  second->load_state(testing::values_of(*first));
  for (size_t i = 0; i < resumed.size(); ++i) {
    const at::NoGradGuard no_grad;
    resumed[i].second.copy_(straight[i].second);
  }
  for (int step = 5; step < 10; ++step) {
    set_gradients(straight, step);
    first->step(0.01);
    set_gradients(resumed, step);
    second->step(0.01);
  }
  CHECK(testing::same_bits(testing::values_of(*first), testing::values_of(*second)));
  for (size_t i = 0; i < resumed.size(); ++i) {
    CHECK(testing::same_bits(straight[i].second, resumed[i].second));
  }
}

TEST_CASE("a state of other parameters is refused and changes nothing", "[train]") {
  const auto parameters = two_parameters();
  const auto optimizer = make_optimizer(parameter_groups(parameters, {}), {});
  set_gradients(parameters, 0);
  optimizer->step(0.1);
  const auto before = testing::values_of(*optimizer);
  auto changed = before;
  std::string expected;
  SECTION("missing") {
    changed.erase("exp_avg.b.weight");
    expected = "\"exp_avg.b.weight\"";
  }
  SECTION("too much") {
    changed["momentum.b.weight"] = at::zeros({70});
    expected = "\"momentum.b.weight\"";
  }
  SECTION("another shape") {
    changed["exp_avg_sq.b.weight"] = at::zeros({71});
    expected = "[71]";
  }
  SECTION("another type") {
    changed["exp_avg_sq.b.weight"] = at::zeros({70}, at::kHalf);
    expected = "Half";
  }
  for (auto& entry : changed) entry.second = entry.second + 1;
  const auto text = testing::message_of<ShapeError>([&] { optimizer->load_state(changed); });
  CHECK(text.find(expected) != std::string::npos);
  CHECK(testing::same_bits(testing::values_of(*optimizer), before));
}

TEST_CASE("groups by weight decay", "[train]") {
  const auto matrix = at::zeros({2, 2}), vector = at::zeros({2});
  const NamedParameters parameters = {{"layers.0.q_proj.weight", matrix},
                                      {"layers.0.q_proj.bias", vector},
                                      {"layers.0.input_layernorm.weight", vector},
                                      {"biased.weight", matrix}};
  SECTION("patterns are searched in the names") {
    const auto groups = parameter_groups(parameters, {.weight_decay = 0.1});
    REQUIRE(groups.size() == 2);
    CHECK(groups[0].weight_decay == 0.1);
    CHECK(names_of(groups[0]) == std::vector<std::string>{"layers.0.q_proj.weight", "biased.weight"});
    CHECK(groups[1].weight_decay == 0);
    CHECK(names_of(groups[1]) == std::vector<std::string>{"layers.0.q_proj.bias", "layers.0.input_layernorm.weight"});
  }
  SECTION("an empty list decays everything") {
    const auto groups = parameter_groups(parameters, {.weight_decay = 0.1, .no_decay = {}});
    REQUIRE(groups.size() == 1);
    CHECK(groups[0].weight_decay == 0.1);
    CHECK(groups[0].parameters.size() == 4);
  }
}

TEST_CASE("groups of LoRA+", "[train]") {
  const auto matrix = at::zeros({2, 2}), vector = at::zeros({2});
  const NamedParameters parameters = {
      {"q_proj.default.lora_A", matrix},          {"q_proj.default.lora_B", matrix},          {"q_proj.bias", vector},
      {"embed.default.lora_embedding_A", matrix}, {"embed.default.lora_embedding_B", matrix}, {"lm_head.weight", matrix}};
  OptimizerOptions options{.lr = 1e-4, .weight_decay = 0.1};
  options.loraplus_lr_ratio = 16;
  const auto groups = parameter_groups(parameters, options);
  std::map<std::string, std::pair<double, double>> settings;
  for (const auto& group : groups) {
    for (const auto& name : names_of(group)) settings[name] = {group.lr_ratio, group.weight_decay};
  }
  using Pair = std::pair<double, double>;
  CHECK(settings.at("q_proj.default.lora_A") == Pair(1, 0.1));
  CHECK(settings.at("lm_head.weight") == Pair(1, 0.1));
  CHECK(settings.at("q_proj.default.lora_B") == Pair(16, 0.1));
  CHECK(settings.at("q_proj.bias") == Pair(16, 0));
  CHECK(settings.at("embed.default.lora_embedding_A").first * 1e-4 == Approx(1e-6));
  CHECK(settings.at("embed.default.lora_embedding_B").first * 1e-4 == Approx(1e-6));

  options.lr = 0;
  CHECK_THROWS_AS(parameter_groups(parameters, options), ConfigError);
}

TEST_CASE("a group's rate is its ratio times the step's", "[train]") {
  const NamedParameters parameters = {{"x.lora_A", at::zeros({2, 2}).requires_grad_()},
                                      {"x.lora_B", at::zeros({2, 2}).requires_grad_()}};
  OptimizerOptions options{.type = "sgd"};
  options.loraplus_lr_ratio = 4;
  const auto optimizer = make_optimizer(parameter_groups(parameters, options), options);
  for (const auto& entry : parameters) entry.second.mutable_grad() = at::ones({2, 2});
  optimizer->step(0.5);
  CHECK(parameters[0].second.equal(at::full({2, 2}, -0.5)));
  CHECK(parameters[1].second.equal(at::full({2, 2}, -2.0)));
}

TEST_CASE("optimizer options out of range are refused", "[train]") {
  const auto groups = parameter_groups(two_parameters(), {});
  CHECK_THROWS_AS(make_optimizer(groups, {.type = "lion"}), ConfigError);
  CHECK_THROWS_AS(make_optimizer(groups, {.beta2 = 1}), ConfigError);
  CHECK_THROWS_AS(make_optimizer(groups, {.momentum = -0.1}), ConfigError);
  CHECK_THROWS_AS(make_optimizer(groups, {.weight_decay = -1}), ConfigError);
  CHECK_THROWS_AS(make_optimizer({}, {}), ConfigError);
  CHECK_THROWS_AS(parameter_groups({}, {.no_decay = {"("}}), ConfigError);
}

TEST_CASE("an update counts as a change of the parameters, by whatever kernel", "[train]") {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    for (const std::string type : {"adamw", "sgd"}) {
      for (const bool masters : {true, false}) {
        INFO(type << " " << dtype << " masters " << masters);
        const auto parameters = two_parameters(dtype);
        OptimizerOptions options;
        options.type = type;
        options.master_weights = masters;
        const auto optimizer = make_optimizer(parameter_groups(parameters, options), options);
        set_gradients(parameters, 0);
        const auto before = parameters.front().second._version();
        optimizer->step(1e-2, 1);
        CHECK(parameters.front().second._version() > before);
      }
    }
  }
}
