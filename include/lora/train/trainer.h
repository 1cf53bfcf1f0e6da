#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "lora/core/path.h"
#include "lora/data/loader.h"
#include "lora/train/step.h"

namespace lora::train {

/// Everything that a Trainer's steps depend on but model, adapters and data.
struct TrainerOptions {
  int64_t steps = 1000;  ///< of the learning-rate schedule and of fit
  double learning_rate = 2e-4;
  double clip_norm = 1.0;
  at::ScalarType amp_dtype = at::kFloat;
  at::Device device = at::kCPU;     ///< the model is moved there
  OptimizerOptions optimizer = {};  ///< its lr is taken from learning_rate
  ScheduleOptions schedule = {};    ///< its lr and total_steps are taken from above
  GradScalerOptions scaler = {};    ///< switched on by amp_dtype kHalf
  StepOptions step = {};            ///< its amp_dtype and clip_norm are taken from above
  /// Of matmul_flops_per_second; 0: sol_percent is not reported.
  double peak_flops_per_second = 0;
};

/// Called after every step with what it did; may fill in `eval_loss`.
using Callback = std::function<void(StepResult&)>;

/// The loop around train_step. Holds no file and writes none: saving and logging are callbacks.
class Trainer {
 public:
  /// Full fine-tuning when `adapters` is none. The parameters that require gradients now are the
  /// ones trained (see freeze_base, train_all). Puts the model into training mode. Throws
  /// ConfigError when nothing trains, or for options out of range.
  Trainer(std::shared_ptr<nn::CausalLMImpl> model, AdapterSets adapters, const TrainerOptions& options);

  Trainer& on_step(Callback callback);
  /// One step on the given micro-batches, callbacks included.
  StepResult step(std::span<const Batch> micro_batches);
  /// Steps until the loader ends, options.steps are done, or `should_stop` says so after a step.
  /// Returns the last result, or nothing when there was no step to do. One warning, once, when loading takes more than
  /// 5 % of 50 steps in a row, with its cause and the setting to change.
  std::optional<StepResult> fit(data::Loader& loader, const std::function<bool()>& should_stop = {});

  StepState& state() { return state_; }

 private:
  StepResult run(const data::StepData& data);

  std::shared_ptr<nn::CausalLMImpl> model_;
  TrainerOptions options_;
  StepState state_;
  std::vector<Callback> callbacks_;
};

/// A callback that logs a line every `interval` steps.
Callback log_every(int64_t interval);
/// A callback that saves the adapter every `interval` steps into `directory`, over the one before.
Callback save_every(int64_t interval, const AdapterSet& adapters, const Path& directory);

}  // namespace lora::train
