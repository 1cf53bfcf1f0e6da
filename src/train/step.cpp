#include "lora/train/step.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "core/check.h"
#include "lora/core/log.h"
#include "lora/core/stopwatch.h"
#include "lora/nn/loss.h"
#include "lora/ops/autocast.h"
#include "lora/ops/device.h"
#include "lora/train/clip.h"
#include "lora/train/nonfinite.h"
#include "train/device_of.h"

namespace lora::train {
namespace {

StepResult begin_step(std::span<const Batch> micro_batches, const StepState& state) {
  StepResult result;
  result.step = state.step + 1;
  result.learning_rate = learning_rate(state.schedule, result.step);
  result.loss_scale = state.scaler.scale();
  for (const Batch& batch : micro_batches) {
    result.tokens += batch.num_tokens;
    result.targets += batch.num_targets;
  }
  return result;
}

/// What the summed losses are divided by.
double loss_divisor(std::span<const Batch> micro_batches, const StepState& state, int64_t targets) {
  if (!state.options.divide_by_all_positions) return static_cast<double>(targets);
  int64_t positions = 0;
  for (const Batch& batch : micro_batches) positions += batch.input_ids_BS.numel();
  return static_cast<double>(positions);
}

/// The batch where the model is; the time that takes is counted, except on the CPU, where nothing is copied.
Batch moved_to(const at::Device& device, const Batch& batch, double& copy_seconds) {
  if (device.is_cpu()) return batch.to(device);
  const Stopwatch clock;
  Batch moved = batch.to(device);
  copy_seconds += clock.seconds();
  return moved;
}

/// Forward and backward of every micro-batch; fills in the losses. They are summed on the device
/// and fetched once, so that a GPU is not waited for in between.
void accumulate_gradients(nn::CausalLMImpl& model, std::span<const Batch> micro_batches,
                          const StepState& state, StepResult& result) {
  const at::Device device = device_of(model);
  const double divisor = loss_divisor(micro_batches, state, result.targets);
  const auto share = 1 / static_cast<double>(micro_batches.size());
  at::Tensor loss_sum = at::zeros({}, at::TensorOptions(device).dtype(at::kDouble));
  at::Tensor reg_sum;
  for (const Batch& micro_batch : micro_batches) {
    const Batch batch = moved_to(device, micro_batch, result.copy_seconds);
    at::Tensor loss, regularizer;
    {
      const AutocastGuard autocast(device.type(), state.options.amp_dtype);
      loss = nn::causal_lm_loss_sum(model, batch) / divisor;
      if (state.adapters) regularizer = state.adapters.regularizer();
    }
    loss_sum += loss.detach();
    if (regularizer.defined()) {
      const at::Tensor part = regularizer * share;
      reg_sum = reg_sum.defined() ? reg_sum + part.detach() : part.detach();
      loss = loss + part;
    }
    state.scaler.scaled(loss).backward();
  }
  result.loss = loss_sum.item<double>();
  if (reg_sum.defined()) result.reg_loss = reg_sum.to(at::kDouble).item<double>();
}

/// Unscales and clips. False when something is not finite: without a scale the norm alone tells, which
/// saves a pass over all gradients.
bool finish_gradients(const StepState& state, StepResult& result) {
  const bool is_scaled = state.scaler.scale() != 1;
  const auto gradients = state.optimizer->gradients(/*widen=*/is_scaled);
  bool finite = std::isfinite(result.loss + result.reg_loss.value_or(0)) &&
                (!is_scaled || state.scaler.unscale(gradients));
  if (finite) {
    result.grad_norm = clip_gradients(gradients, state.options.clip_norm);
    finite = std::isfinite(result.grad_norm);
  }
  if (!finite) result.grad_norm = std::numeric_limits<double>::quiet_NaN();
  return finite;
}

std::string describe_nonfinite(nn::CausalLMImpl& model, std::span<const Batch> micro_batches,
                               const StepState& state) {
  const std::string found = locate_nonfinite(model, micro_batches, state.options.amp_dtype);
  return found.empty() ? "a value was not finite, but is when the step is repeated without dropout"
                       : found;
}

/// The step counts, but nothing is updated. An overflow that makes a dynamic scale smaller is how
/// such a scale finds its size; any other value that is not finite is looked for and reported.
void skip_update(nn::CausalLMImpl& model, std::span<const Batch> micro_batches, StepState& state,
                 StepResult& result) {
  result.overflow = true;
  const bool expected = std::isfinite(result.loss) && state.scaler.can_back_off();
  state.scaler.update(/*overflow=*/true);
  if (expected) return;
  result.nonfinite = describe_nonfinite(model, micro_batches, state);
  ++state.nonfinite_in_a_row;
  const bool too_many = state.nonfinite_in_a_row >= state.options.max_nonfinite;
  if (!state.options.stop_on_nonfinite && !too_many) return;
  state.optimizer->zero_grad();
  fail<NonFiniteError>(
      "[step {}] loss and gradients must be finite; {}; {} step(s) in a row were not; lower the "
      "learning rate, look at these rows, or see train.on_nonfinite and train.max_nonfinite",
      result.step, result.nonfinite, state.nonfinite_in_a_row);
}

void update(StepState& state, const StepResult& result) {
  state.optimizer->step(result.learning_rate);
  state.scaler.update(/*overflow=*/false);
  state.nonfinite_in_a_row = 0;
}

void warn_without_targets(StepState& state, int64_t step) {
  if (state.warned_without_targets) return;
  state.warned_without_targets = true;
  log::warn(fmt::format(
      "[step {}] a step should have targets; its rows have none, so that nothing was updated; this "
      "is said once; check labels and length limits of the data",
      step));
}

}  // namespace

StepResult train_step(nn::CausalLMImpl& model, std::span<const Batch> micro_batches,
                      StepState& state) {
  const Stopwatch clock;
  StepResult result = begin_step(micro_batches, state);
  state.optimizer->zero_grad();
  if (result.targets == 0) {
    warn_without_targets(state, result.step);
  } else {
    accumulate_gradients(model, micro_batches, state, result);
    if (finish_gradients(state, result)) {
      update(state, result);
    } else {
      skip_update(model, micro_batches, state, result);
    }
    state.optimizer->zero_grad();
  }
  state.step = result.step;
  result.peak_bytes = peak_process_bytes();
  result.step_seconds = clock.seconds();
  result.tokens_per_second = static_cast<double>(result.tokens) / result.step_seconds;
  return result;
}

}  // namespace lora::train
