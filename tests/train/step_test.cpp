#include "lora/train/step.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "adapters/state.h"
#include "lora/core/error.h"
#include "lora/nn/loss.h"
#include "support.h"
#include "train/training_setup.h"

using namespace lora;
using namespace lora::testing;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// Plain gradient descent at rate 1 without clipping: the change of a weight is its gradient.
train::TrainerOptions gradient_options() {
  train::TrainerOptions options;
  options.learning_rate = 1;
  options.clip_norm = 0;
  options.optimizer.type = "sgd";
  return options;
}

train::TrainerOptions scaled_options() {
  auto options = tiny_options();
  options.scaler = {.enabled = true, .init = 1024, .factor = 4, .min = 1, .window = 3};
  return options;
}

double mean_loss(nn::CausalLMImpl& model, const std::vector<Batch>& batches) {
  const at::NoGradGuard no_grad;
  double sum = 0;
  int64_t targets = 0;
  for (const auto& batch : batches) {
    sum += nn::causal_lm_loss_sum(model, batch).item<double>();
    targets += batch.num_targets;
  }
  return sum / static_cast<double>(targets);
}

bool has_gradient(const nn::CausalLMImpl& model) {
  for (const auto& parameter : model.parameters()) {
    if (parameter.grad().defined()) return true;
  }
  return false;
}

/// 0.5 * weight^2 over one factor, for tests of regularizers.
class SquarePenalty : public nn::Adapter {
 public:
  explicit SquarePenalty(at::Tensor value) : value_(std::move(value)) {}
  at::Tensor delta(const at::Tensor& x) override { return x; }
  at::Tensor weight_delta() const override { return {}; }
  at::Tensor regularizer() const override { return value_.square().sum() / 2; }

 private:
  at::Tensor value_;
};

}  // namespace

TEST_CASE("1 x 8, 2 x 4 and 8 x 1 rows are the same step", "[train]") {
  const auto [dtype, tolerance] = GENERATE(std::pair{at::kFloat, 1e-6}, std::pair{at::kDouble, 1e-12});
  const auto dataset = tiny_dataset(8);
  auto whole = full_setup(gradient_options(), dtype);
  const auto result = whole.step(batches_of(dataset, 8));
  for (const size_t size : {4u, 1u}) {
    auto split = full_setup(gradient_options(), dtype);
    const auto parts = split.step(batches_of(dataset, size));
    CHECK(parts.loss == Approx(result.loss).epsilon(tolerance));
    CHECK(parts.grad_norm == Approx(result.grad_norm).epsilon(tolerance));
    CHECK(parts.tokens == result.tokens);
    CHECK(parts.targets == result.targets);
    CHECK(distance(values_of(*split.model), values_of(*whole.model)) < tolerance);
  }
  // The gradient is not zero, so the comparison says something.
  CHECK(distance(values_of(*whole.model), values_of(*full_setup({}, dtype).model)) > 0.01);
}

TEST_CASE("a step reports what it did", "[train]") {
  const auto dataset = tiny_dataset(8);
  const auto batches = batches_of(dataset, 3);
  auto setup = full_setup(gradient_options());
  const auto before = values_of(*setup.model);
  const double loss = mean_loss(*setup.model, batches);
  const auto result = setup.step(batches);

  CHECK(result.step == 1);
  CHECK(result.loss == Approx(loss).epsilon(1e-6));
  CHECK_FALSE(result.reg_loss);
  CHECK(result.learning_rate == 1);
  CHECK(result.loss_scale == 1);
  CHECK_FALSE(result.overflow);
  CHECK(result.nonfinite.empty());
  CHECK(result.step_seconds > 0);
  CHECK(result.tokens_per_second == Approx(static_cast<double>(result.tokens) / result.step_seconds));
  CHECK(result.peak_bytes > 1'000'000);
  int64_t tokens = 0, targets = 0;
  for (const auto& example : dataset.examples) {
    tokens += static_cast<int64_t>(example.input_ids.size());
    targets += static_cast<int64_t>(example.input_ids.size()) - 2;
  }
  CHECK(result.tokens == tokens);
  CHECK(result.targets == targets);
  double square = 0;
  for (const auto& [name, value] : values_of(*setup.model)) {
    square += (value - before.at(name)).square().sum().item<double>();
  }
  CHECK(result.grad_norm == Approx(std::sqrt(square)).epsilon(1e-5));
  CHECK_FALSE(has_gradient(*setup.model));
  CHECK(setup.state().step == 1);
  CHECK(setup.step(batches).step == 2);
}

TEST_CASE("clipping bounds the update, not the reported norm", "[train]") {
  auto options = gradient_options();
  options.clip_norm = 0.125;
  auto setup = full_setup(options);
  const auto before = values_of(*setup.model);
  const auto result = setup.step(batches_of(tiny_dataset(8), 8));
  CHECK(result.grad_norm > 0.25);
  double square = 0;
  for (const auto& [name, value] : values_of(*setup.model)) {
    square += (value - before.at(name)).square().sum().item<double>();
  }
  CHECK(std::sqrt(square) == Approx(0.125).epsilon(1e-4));
}

TEST_CASE("equal seeds give equal bits", "[train]") {
  const auto batches = batches_of(tiny_dataset(8), 4);
  const auto run = [&] {
    auto setup = lora_setup(tiny_options(), /*dropout=*/0.2);
    double loss = 0;
    for (int i = 0; i < 10; ++i) loss = setup.step(batches).loss;
    return std::pair{loss, values_of(*setup.model)};
  };
  const auto first = run(), second = run();
  CHECK(first.first == second.first);
  CHECK(same_bits(first.second, second.second));
}

TEST_CASE("training lowers the loss in every precision", "[train]") {
  auto options = tiny_options();
  options.amp_dtype = GENERATE(at::kFloat, at::kBFloat16, at::kHalf);
  const bool adapter = GENERATE(false, true);
  auto setup = adapter ? lora_setup(options, /*dropout=*/0.05) : full_setup(options);
  const auto batches = batches_of(tiny_dataset(8), 4);
  const double first = setup.step(batches).loss;
  train::StepResult last;
  for (int i = 0; i < 30; ++i) last = setup.step(batches);
  CHECK(last.loss < (adapter ? 0.95 : 0.8) * first);
  CHECK(last.loss_scale == (options.amp_dtype == at::kHalf ? 65536 : 1));
}

TEST_CASE("a scaled step equals an unscaled one", "[train]") {
  const auto batches = batches_of(tiny_dataset(8), 4);
  auto options = gradient_options();
  auto plain = full_setup(options, at::kDouble);
  options.scaler = {.enabled = true, .init = 1024};
  auto scaled = full_setup(options, at::kDouble);
  CHECK(plain.step(batches).grad_norm == Approx(scaled.step(batches).grad_norm).epsilon(1e-12));
  CHECK(distance(values_of(*plain.model), values_of(*scaled.model)) < 1e-12);
}

TEST_CASE("frozen weights stay and get no gradient", "[train]") {
  auto setup = lora_setup();
  const auto before = values_of(*setup.model);
  const auto batches = batches_of(tiny_dataset(8), 4);
  nn::causal_lm_loss_sum(*setup.model, batches[0]).backward();
  for (const auto& entry : setup.model->named_parameters()) {
    CAPTURE(entry.key());
    CHECK(entry.value().grad().defined() == entry.value().requires_grad());
  }
  setup.step(batches);
  std::vector<std::string> changed;
  for (const auto& [name, value] : values_of(*setup.model)) {
    if (!same_bits(value, before.at(name))) changed.push_back(name);
  }
  std::vector<std::string> expected = setup.adapters.names();
  expected.push_back("layers.1.norm.weight");
  std::ranges::sort(expected);
  CHECK(changed == expected);
}

TEST_CASE("the loss can be divided by all positions", "[train]") {
  const auto batches = batches_of(tiny_dataset(8), 3);
  auto options = gradient_options();
  const double per_target = full_setup(options).step(batches).loss;
  options.step.divide_by_all_positions = true;
  const auto result = full_setup(options).step(batches);
  int64_t positions = 0;
  for (const auto& batch : batches) positions += batch.input_ids_BS.numel();
  CHECK(result.loss * static_cast<double>(positions) == Approx(per_target * static_cast<double>(result.targets)).epsilon(1e-6));
}

TEST_CASE("a regularizer is added once, whatever the number of micro-batches", "[train]") {
  const auto dataset = tiny_dataset(8);
  auto plain = lora_setup(gradient_options());
  const double loss = plain.step(batches_of(dataset, 8)).loss;
  const at::Tensor plain_change = plain.adapters.parameters()[0].detach().clone();
  for (const size_t size : {8u, 2u}) {
    auto setup = lora_setup(gradient_options());
    const at::Tensor factor = setup.adapters.parameters()[0];
    const at::Tensor before = factor.detach().clone();
    setup.adapters.state().slots[0].adapter = std::make_shared<SquarePenalty>(factor);
    const auto result = setup.step(batches_of(dataset, size));
    CHECK(result.loss == Approx(loss).epsilon(1e-6));
    REQUIRE(result.reg_loss);
    CHECK(*result.reg_loss == Approx(before.square().sum().item<double>() / 2).epsilon(1e-6));
    // The penalty's gradient is the factor itself.
    CHECK((factor.detach() - (plain_change - before)).abs().max().item<double>() < 1e-6);
  }
}

TEST_CASE("a gradient that is not finite changes nothing but the scale", "[train]") {
  const auto batches = batches_of(tiny_dataset(8), 4);
  auto setup = lora_setup(scaled_options());
  setup.step(batches);
  auto trained = setup.state().optimizer->parameters();
  SplitMix64 random(17);
  int64_t unchanged = 0;
  for (int i = 0; i < 100; ++i) {
    setup.state().scaler.load_state({1024, 1});
    const auto weights = values_of(*setup.model);
    const auto memory = values_of(*setup.state().optimizer);
    const at::Tensor parameter = trained[random.below(trained.size())].second;
    const auto element = static_cast<int64_t>(random.below(static_cast<uint64_t>(parameter.numel())));
    const double value = i % 3 == 0 ? kNan : (i % 3 == 1 ? kInfinity : -kInfinity);
    const PoisonedGradient poison(parameter, element, value);
    const auto result = setup.step(batches);
    unchanged += result.overflow && result.nonfinite.empty() && std::isnan(result.grad_norm) && result.loss_scale == 1024 &&
                 setup.state().scaler.state() == train::GradScaler::State{256, 0} &&
                 same_bits(values_of(*setup.model), weights) && same_bits(values_of(*setup.state().optimizer), memory) &&
                 !has_gradient(*setup.model);
  }
  CHECK(unchanged == 100);
  CHECK(setup.state().step == 101);
  CHECK(setup.state().nonfinite_in_a_row == 0);
  CHECK_FALSE(setup.step(batches).overflow);
}

TEST_CASE("a storm of overflows ends in a clear error", "[train]") {
  const auto batches = batches_of(tiny_dataset(8), 4);
  auto setup = lora_setup(scaled_options());
  const auto [name, parameter] = setup.state().optimizer->parameters()[1];
  const PoisonedGradient poison(parameter, 0, kInfinity);
  int64_t skipped = 0;
  const auto text = message_of<NonFiniteError>([&] {
    for (int i = 0; i < 200; ++i) skipped += setup.step(batches).overflow;
  });
  // 1024 -> 1 in five steps; then ten in a row, of which the last one throws.
  CHECK(skipped == 5 + 9);
  CHECK(setup.state().scaler.scale() == 1);
  CHECK(text.find("the gradient of " + name) != std::string::npos);
  CHECK(text.find("10 step(s) in a row") != std::string::npos);
  CHECK_FALSE(has_gradient(*setup.model));
  CHECK(setup.state().step == 14);
  CHECK(setup.state().nonfinite_in_a_row == 9);  // the step that ends the run changes nothing
}

TEST_CASE("skips that are not in a row do not stop the run", "[train]") {
  const auto batches = batches_of(tiny_dataset(8), 4);
  auto options = tiny_options();
  options.step.max_nonfinite = 2;
  auto setup = lora_setup(options);
  const auto parameter = setup.state().optimizer->parameters()[0].second;
  for (int i = 0; i < 20; ++i) {
    if (i % 2 == 0) {
      CHECK_FALSE(setup.step(batches).overflow);
      continue;
    }
    const PoisonedGradient poison(parameter, 0, kNan);
    const auto result = setup.step(batches);
    CHECK(result.overflow);
    CHECK(result.nonfinite.find("data row(s) 1, 2, 3") != std::string::npos);
  }
}

TEST_CASE("the policy stop throws at once", "[train]") {
  const auto batches = batches_of(tiny_dataset(4), 4);
  auto options = tiny_options();
  options.step.stop_on_nonfinite = true;
  auto setup = full_setup(options);
  {
    const at::NoGradGuard no_grad;
    setup.model->layers[1]->as<TinyLayerImpl>()->proj->weight[2][3] = kNan;
  }
  const auto before = values_of(*setup.model);
  const auto text = message_of<NonFiniteError>([&] { setup.step(batches); });
  CHECK(text.find("layers.1.proj.weight") != std::string::npos);
  CHECK(setup.state().step == 0);
  CHECK(same_bits(values_of(*setup.model), before));
}

TEST_CASE("a loss that is not finite is reported even while the scale can fall", "[train]") {
  const auto batches = batches_of(tiny_dataset(4), 4);
  auto setup = lora_setup(scaled_options());
  {
    const at::NoGradGuard no_grad;
    setup.model->lm_head->weight[0][0] = kInfinity;
  }
  const auto result = setup.step(batches);
  CHECK(result.overflow);
  CHECK(result.nonfinite.find("lm_head.weight") != std::string::npos);
  CHECK(setup.state().nonfinite_in_a_row == 1);
}

TEST_CASE("a step without targets updates nothing", "[train]") {
  auto batches = batches_of(tiny_dataset(4), 2);
  for (auto& batch : batches) {
    batch.labels_BS.fill_(kIgnoreLabel);
    batch.num_targets = 0;
  }
  auto setup = full_setup();
  const auto before = values_of(*setup.model);
  for (const auto& given : {batches, std::vector<Batch>{}}) {
    const auto result = setup.step(given);
    CHECK(result.loss == 0);
    CHECK_FALSE(result.overflow);
    CHECK(same_bits(values_of(*setup.model), before));
  }
  CHECK(setup.state().step == 2);
  CHECK(setup.state().optimizer->state().at("step.embed.weight").item<double>() == 0);
}

TEST_CASE("a micro-batch without targets beside others counts as nothing", "[train]") {
  const auto dataset = tiny_dataset(6);
  auto with = batches_of(dataset, 3);
  with.push_back(with[0]);
  with[2].labels_BS = at::full_like(with[2].labels_BS, kIgnoreLabel);
  with[2].num_targets = 0;
  auto plain = full_setup(gradient_options(), at::kDouble);
  auto padded = full_setup(gradient_options(), at::kDouble);
  CHECK(plain.step(batches_of(dataset, 3)).loss == Approx(padded.step(with).loss).epsilon(1e-12));
  CHECK(distance(values_of(*plain.model), values_of(*padded.model)) < 1e-12);
}

// ChatGLM's recipe: 5e-5 after 2000 warm-up steps in a run of 124, of which the first 18 overflow. Its log has the rate of the
// step to come: 2.45e-6, 2.55e-6 and 2.65e-6 after steps 116, 120 and 124.
TEST_CASE("steps that an overflow left out advance the rate, or do not", "[train]") {
  const bool count_skipped = GENERATE(true, false);
  auto options = tiny_options();
  options.steps = 124;
  options.learning_rate = 5e-5;
  options.amp_dtype = at::kHalf;
  options.scaler = {.init = 0x1p32};
  options.schedule = {.type = "polynomial", .warmup_steps = 2000, .end = 1e-6, .count_skipped = count_skipped};
  auto setup = lora_setup(options);
  const auto batches = batches_of(tiny_dataset(2), 2);
  const auto parameter = setup.state().optimizer->parameters()[0].second;
  std::map<int64_t, double> rates;
  for (int64_t step = 1; step <= 124; ++step) {
    std::optional<PoisonedGradient> poison;
    if (setup.state().scaler.scale() > 0x1p14) poison.emplace(parameter, 0, kInfinity);
    rates[step] = setup.step(batches).learning_rate;
  }
  CHECK(setup.state().skipped_steps == 18);
  CHECK(setup.state().scaler.scale() == 0x1p14);
  CHECK(rates[19] == Approx(5e-5 * (count_skipped ? 18 : 0) / 2000));
  CHECK(rates[117] == Approx(count_skipped ? 2.9e-6 : 2.45e-6));
  CHECK(rates[121] == Approx(count_skipped ? 3.0e-6 : 2.55e-6));
  CHECK(rates[124] == Approx(5e-5 * (count_skipped ? 123 : 105) / 2000));
}
