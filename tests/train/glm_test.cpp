// The loop trains ChatGLM as it trains any model.
#include <ATen/ATen.h>

#include "catch.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/train/evaluate.h"
#include "lora/train/trainer.h"
#include "models/glm_model.h"

using namespace lora;
using namespace lora::testing;

TEST_CASE("glm: steps over padded and packed rows lower the loss alike", "[train]") {
  std::vector<double> losses;
  for (const bool is_packed : {false, true}) {
    auto model = tiny_glm(41);
    const auto adapters = inject(*model, LoraOptions{.rank = 8, .alpha = 16, .targets = model->default_targets()});
    freeze_base(*model, adapters);
    const std::vector<data::Example> rows = {glm_example(5, 6), glm_example(9, 3), glm_example(2, 12)},
                                     more = {glm_example(4, 4)};
    const auto batch_of = [&](const auto& examples) {
      return is_packed ? data::collate_packed(pointers_to(examples), kPad, 16) : data::collate(pointers_to(examples), kPad, 16);
    };
    const std::vector<Batch> micro_batches = {batch_of(rows), batch_of(more)};
    train::TrainerOptions options;
    options.steps = 30;
    options.learning_rate = 0.02;
    train::Trainer trainer(model, adapters, options);
    const double first = trainer.step(micro_batches).loss;
    double last = first;
    for (int64_t step = 1; step < options.steps; ++step) last = trainer.step(micro_batches).loss;
    CHECK(last < 0.7 * first);
    losses.push_back(first);
  }
  CHECK(losses[0] == Approx(losses[1]).epsilon(1e-6));
}
