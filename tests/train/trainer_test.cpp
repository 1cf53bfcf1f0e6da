#include "lora/train/trainer.h"

#include <ATen/ATen.h>

#include "lora/adapters/adapter_io.h"
#include "lora/core/error.h"
#include "lora/io/safetensors.h"
#include "support.h"
#include "train/training_setup.h"

using namespace lora;
using namespace lora::testing;

namespace {

data::LoaderOptions loader_options(int64_t num_steps = -1) {
  return {.batch_size = 2, .grad_accum = 2, .seed = 5, .num_steps = num_steps};
}

}  // namespace

TEST_CASE("fit trains until the loader ends", "[train]") {
  auto setup = lora_setup();
  const auto dataset = tiny_dataset(12);
  data::Loader loader(dataset, loader_options());
  std::vector<train::StepResult> results;
  setup.trainer->on_step([&](train::StepResult& result) { results.push_back(result); });
  const auto last = setup.trainer->fit(loader);
  REQUIRE(last);
  REQUIRE(results.size() == 3);
  CHECK(last->step == 3);
  for (size_t i = 0; i < results.size(); ++i) {
    CHECK(results[i].step == static_cast<int64_t>(i) + 1);
    CHECK(results[i].epoch == 0);
    CHECK(results[i].data_seconds >= 0);
    CHECK(results[i].tokens_per_second ==
          Approx(static_cast<double>(results[i].tokens) / (results[i].step_seconds + results[i].data_seconds)));
  }
  CHECK_FALSE(setup.trainer->fit(loader));
}

TEST_CASE("fit trains no more steps than its schedule has, over epochs", "[train]") {
  auto options = tiny_options();
  options.steps = 7;
  auto setup = full_setup(options);
  const auto dataset = tiny_dataset(12);
  data::Loader loader(dataset, loader_options(/*num_steps=*/100));
  const auto last = setup.trainer->fit(loader);
  CHECK(last->step == 7);
  CHECK(last->epoch == 2);
  CHECK_FALSE(setup.trainer->fit(loader));
}

TEST_CASE("fit stops when it is told to, after a whole step", "[train]") {
  auto setup = full_setup();
  const auto dataset = tiny_dataset(12);
  data::Loader loader(dataset, loader_options(20));
  const auto last = setup.trainer->fit(loader, [&] { return setup.state().step == 4; });
  CHECK(last->step == 4);
  CHECK(setup.trainer->fit(loader)->step == 20);
}

TEST_CASE("callbacks run in order and share the result", "[train]") {
  auto setup = full_setup();
  std::vector<double> seen;
  setup.trainer->on_step([](train::StepResult& result) { result.eval_loss = 1.5; }).on_step([&](train::StepResult& result) {
    seen.push_back(*result.eval_loss);
  });
  CHECK(setup.step(batches_of(tiny_dataset(4), 4)).eval_loss == 1.5);
  CHECK(seen == std::vector<double>{1.5});
}

TEST_CASE("the trainer fills in what follows from its options", "[train]") {
  auto options = tiny_options();
  options.amp_dtype = at::kHalf;
  options.clip_norm = 0.25;
  auto setup = full_setup(options);
  CHECK(setup.state().options.amp_dtype == at::kHalf);
  CHECK(setup.state().options.clip_norm == 0.25);
  CHECK(setup.state().scaler.scale() == 65536);
  CHECK(setup.state().schedule.lr == options.learning_rate);
  CHECK(setup.state().schedule.total_steps == options.steps);
  CHECK(setup.model->is_training());
}

TEST_CASE("the trainer trains what requires a gradient, tied weights once", "[train]") {
  auto model = std::make_shared<TinyModelImpl>();
  for (auto& parameter : model->parameters()) parameter.set_requires_grad(false);
  SECTION("nothing to train is an error") { CHECK_THROWS_AS(train::Trainer(model, {}, tiny_options()), ConfigError); }
  SECTION("a weight of two modules") {
    model->embed->weight.set_requires_grad(true);
    model->layers->register_module("tied", model->embed.ptr());
    train::Trainer trainer(model, {}, tiny_options());
    const auto trained = trainer.state().optimizer->parameters();
    REQUIRE(trained.size() == 1);
    CHECK(trained[0].first == "embed.weight");
  }
}

TEST_CASE("the adapter is saved every few steps", "[train]") {
  const ScratchFolder scratch;
  auto setup = lora_setup();
  setup.trainer->on_step(train::log_every(2)).on_step(train::save_every(2, setup.adapters, scratch / "adapter"));
  const auto batches = batches_of(tiny_dataset(4), 4);
  setup.step(batches);
  CHECK_FALSE(std::filesystem::exists(scratch / "adapter"));
  setup.step(batches);
  Values expected;
  for (const auto& [name, tensor] : adapter_to_files(setup.adapters).tensors) {
    expected[name] = tensor.clone();
  }
  setup.step(batches);
  const auto saved = io::load_safetensors(scratch / "adapter/adapter_model.safetensors");
  CHECK(same_bits(Values(saved.begin(), saved.end()), expected));
}
