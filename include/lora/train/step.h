#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lora/adapters/adapter_sets.h"
#include "lora/nn/causal_lm.h"
#include "lora/ops/batch.h"
#include "lora/train/eval_history.h"
#include "lora/train/grad_scaler.h"
#include "lora/train/optimizer.h"
#include "lora/train/schedule.h"

namespace lora::train {

/// What one optimizer step does beside forward, backward and update.
struct StepOptions {
  at::ScalarType amp_dtype = at::kFloat;  ///< autocast's type; kFloat: off
  double clip_norm = 1.0;                 ///< 0: off
  bool divide_by_all_positions = false;   ///< loss_reduction all_positions, else by the targets
  bool stop_on_nonfinite = false;         ///< else the step is skipped
  /// This many skipped in a row stop the run. Here and above, an overflow that lowers a dynamic
  /// loss scale while the loss itself is finite does not count: it is part of the scale's work.
  int64_t max_nonfinite = 10;
};

/// What one optimizer step did. Written to metrics.jsonl and given to callbacks.
struct StepResult {
  int64_t step = 0;   ///< from 1
  int64_t epoch = 0;  ///< from 0
  double loss = 0;    ///< mean over targets of all micro-batches (see loss_reduction)
  std::optional<double> reg_loss;
  double learning_rate = 0;  ///< used in this step
  double grad_norm = 0;      ///< after unscaling, before clipping; NaN when not finite
  double loss_scale = 1;     ///< used in this step
  bool overflow = false;     ///< loss or gradients were not finite; nothing was updated
  int64_t tokens = 0, targets = 0;
  double step_seconds = 0, data_seconds = 0, tokens_per_second = 0;
  /// What a loader needed to read the step's rows and to make tensors of them, however many steps before; and what the
  /// step itself (it is part of step_seconds) needed to hand them to a GPU.
  double data_read_seconds = 0, data_transform_seconds = 0, copy_seconds = 0;
  /// Useful operations per second as a share of the device's matrix products, in percent (see
  /// speed_of_light.h); nothing when the latter were not measured.
  std::optional<double> sol_percent;
  uint64_t peak_bytes = 0;
  /// With AdaLoRA: ranks that all modules may have together after this step, and those of each module (in the adapter's order)
  /// after a step that allocated; else empty.
  std::optional<int64_t> rank_budget;
  std::vector<int64_t> ranks;
  std::optional<double> eval_loss;  ///< when held-out loss was measured after this step
  bool is_best = false;             ///< the lowest held-out loss of the run so far
  /// Empty, or where the first value that is not finite arose and in which rows. Empty as well for
  /// an overflow that lowers a dynamic loss scale.
  std::string nonfinite;
};

class RecordedSteps;

/// All that changes from step to step, besides the model: owned by the caller, saved in
/// checkpoints.
struct StepState {
  StepOptions options;
  ScheduleOptions schedule;
  AdapterSets adapters;  ///< may be none: full fine-tuning
  std::unique_ptr<Optimizer> optimizer;
  GradScaler scaler{GradScalerOptions{}};
  int64_t step = 0;  ///< steps done
  int64_t nonfinite_in_a_row = 0;
  int64_t skipped_steps = 0;            ///< of the steps done, those with an overflow
  EvalHistory evaluations;              ///< kept by whoever evaluates
  std::string stopped_by;               ///< the callback that ended the run, if one did; kept by whoever asks them
  bool warned_without_targets = false;  ///< one warning is enough; not saved
  /// On a GPU: steps recorded by shape (nn::FastPaths::recorded_step). train_step makes it and keeps it up to date when
  /// parameters or switches change; reset it after changing an adapter's scale. Not saved.
  std::shared_ptr<RecordedSteps> recorded = nullptr;
};

/// One optimizer step over its micro-batches: forward and backward of each, losses divided by the
/// number of targets of all of them (so that 1 x 8, 2 x 4 and 8 x 1 rows give the same gradients),
/// unscaling, finite check, clipping, update. Frozen weights get no gradient. The batches are moved
/// to the model's device; dropout goes by the model's mode. When a value is not finite nothing is
/// updated, yet the step counts; NonFiniteError is thrown when the options say to stop, with the
/// step not counted. Without any target nothing is updated either: loss 0. Gradients are cleared at
/// the end.
StepResult train_step(nn::CausalLMImpl& model, std::span<const Batch> micro_batches, StepState& state);

}  // namespace lora::train
