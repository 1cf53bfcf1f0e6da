// A tiny model with all that train_step needs, in the forms the tests train it.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/train/trainer.h"
#include "train/tiny_model.h"

namespace lora::testing {

inline train::TrainerOptions tiny_options() {
  train::TrainerOptions options;
  options.steps = 40;
  options.learning_rate = 0.02;
  options.optimizer.weight_decay = 0.01;
  options.schedule.type = "cosine";
  return options;
}

/// Model, adapter (unless full fine-tuning) and trainer.
struct Setup {
  std::shared_ptr<TinyModelImpl> model;
  AdapterSet adapters;
  std::unique_ptr<train::Trainer> trainer;

  train::StepState& state() { return trainer->state(); }
  train::StepResult step(std::span<const Batch> micro_batches) { return trainer->step(micro_batches); }
};

inline Setup full_setup(const train::TrainerOptions& options = tiny_options(), at::ScalarType dtype = at::kFloat) {
  Setup setup{std::make_shared<TinyModelImpl>(), {}, nullptr};
  setup.model->to(dtype);
  setup.trainer = std::make_unique<train::Trainer>(setup.model, setup.adapters, options);
  return setup;
}

/// LoRA on the projections, B not zero, and by rule one norm of the base.
inline Setup lora_setup(const train::TrainerOptions& options = tiny_options(), double dropout = 0) {
  Setup setup{std::make_shared<TinyModelImpl>(), {}, nullptr};
  LoraOptions lora{.rank = 2, .alpha = 4, .dropout = dropout, .init = "false"};
  lora.targets = std::vector<std::string>{"proj"};
  setup.adapters = inject(*setup.model, lora);
  freeze_base(*setup.model, setup.adapters, {.train = {"layers.1.norm"}, .freeze = {}});
  setup.trainer = std::make_unique<train::Trainer>(setup.model, setup.adapters, options);
  return setup;
}

/// While it lives, one element of one parameter's gradient becomes `value` in every backward pass.
class PoisonedGradient {
 public:
  PoisonedGradient(at::Tensor parameter, int64_t element, double value) : parameter_(std::move(parameter)) {
    hook_ = parameter_.register_hook([=](const at::Tensor& gradient) {
      at::Tensor poisoned = gradient.clone();
      poisoned.view(-1)[element] = value;
      return poisoned;
    });
  }
  ~PoisonedGradient() { parameter_.remove_hook(hook_); }
  PoisonedGradient(const PoisonedGradient&) = delete;
  PoisonedGradient& operator=(const PoisonedGradient&) = delete;

 private:
  at::Tensor parameter_;
  unsigned hook_ = 0;
};

}  // namespace lora::testing
