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
#include "train/recorded_steps.h"

namespace lora::train {
namespace {

StepResult begin_step(const nn::CausalLMImpl& model, std::span<const Batch> micro_batches, const StepState& state) {
  StepResult result;
  result.step = state.step + 1;
  const int64_t uncounted = state.schedule.count_skipped ? 0 : state.skipped_steps;
  result.learning_rate = learning_rate(state.schedule, result.step - uncounted);
  result.loss_scale = state.scaler.scale();
  for (const Batch& batch : micro_batches) {
    result.tokens += batch.num_tokens;
    result.targets += model.num_targets(batch);
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

/// What a step sums up on the device, read together with the gradients' norm: a GPU is waited for once per step.
struct Sums {
  at::Tensor loss;
  at::Tensor regularizer;  ///< undefined: none
};

/// Loss sum / divisor and, into `regularizer`, the method's own loss; undefined when there is none.
at::Tensor micro_batch_loss(nn::CausalLMImpl& model, const Batch& batch, const StepState& state, double divisor,
                            at::Tensor& regularizer) {
  const AutocastGuard autocast(batch.input_ids_BS.device().type(), state.options.amp_dtype);
  const at::Tensor loss = nn::causal_lm_loss_sum(model, batch) / divisor;
  if (state.adapters) regularizer = state.adapters.regularizer();
  return loss;
}

/// The micro-batch's loss when it ran as recorded on a GPU; nothing when it did not.
std::optional<at::Tensor> run_recorded(nn::CausalLMImpl& model, const Batch& batch, StepState& state, double divisor,
                                       bool shares) {
  if (!batch.input_ids_BS.is_cuda()) return std::nullopt;
  if (state.adapters && state.adapters.regularizer().defined()) return std::nullopt;
  if (!state.recorded) state.recorded = std::make_shared<RecordedSteps>();
  const double factor = state.scaler.scale() / divisor;
  const auto sum = state.recorded->run(model, batch, factor, state.options.amp_dtype, shares);
  return sum ? std::optional(*sum / divisor) : std::nullopt;
}

/// Forward and backward of every micro-batch.
Sums accumulate_gradients(nn::CausalLMImpl& model, std::span<const Batch> micro_batches, StepState& state, StepResult& result) {
  const at::Device device = device_of(model);
  const double divisor = loss_divisor(micro_batches, state, result.targets);
  const auto share = 1 / static_cast<double>(micro_batches.size());
  Sums sums{at::zeros({}, at::TensorOptions(device).dtype(at::kDouble)), at::Tensor()};
  for (const Batch& micro_batch : micro_batches) {
    const Batch batch = moved_to(device, micro_batch, result.copy_seconds);
    if (const auto loss = run_recorded(model, batch, state, divisor, micro_batches.size() > 1)) {
      sums.loss += *loss;
      continue;
    }
    at::Tensor regularizer;
    at::Tensor loss = micro_batch_loss(model, batch, state, divisor, regularizer);
    sums.loss += loss.detach();
    if (regularizer.defined()) {
      const at::Tensor part = regularizer * share;
      sums.regularizer = sums.regularizer.defined() ? sums.regularizer + part.detach() : part.detach();
      loss = loss + part;
    }
    state.scaler.scaled(loss).backward();
  }
  return sums;
}

/// Unscales, and fills in losses and norm. False when something is not finite: without a scale
/// the norm alone tells, which saves a pass over all gradients.
bool finish_gradients(const StepState& state, const Sums& sums, StepResult& result) {
  const bool is_scaled = state.scaler.scale() != 1;
  const auto gradients = state.optimizer->gradients(/*widen=*/is_scaled);
  const at::Tensor zero = at::zeros_like(sums.loss);
  const auto there = [&](const at::Tensor& number) { return number.to(sums.loss.options()); };
  const at::Tensor numbers =
      at::stack({sums.loss, sums.regularizer.defined() ? there(sums.regularizer) : zero,
                 is_scaled ? there(state.scaler.unscale_unread(gradients)) : zero, there(gradient_norm(gradients))})
          .cpu();
  const auto* read = numbers.const_data_ptr<double>();
  result.loss = read[0];
  if (sums.regularizer.defined()) result.reg_loss = read[1];
  bool finite = std::isfinite(read[0] + read[1]) && read[2] == 0;
  if (finite) {
    result.grad_norm = checked_norm(gradients, read[3]);
    finite = std::isfinite(result.grad_norm);
  }
  if (!finite) result.grad_norm = std::numeric_limits<double>::quiet_NaN();
  return finite;
}

std::string describe_nonfinite(nn::CausalLMImpl& model, std::span<const Batch> micro_batches, const StepState& state) {
  const std::string found = locate_nonfinite(model, micro_batches, state.options.amp_dtype);
  return found.empty() ? "a value was not finite, but is when the step is repeated without dropout" : found;
}

/// The step counts, but nothing is updated. An overflow that makes a dynamic scale smaller is how
/// such a scale finds its size; any other value that is not finite is looked for and reported. A step that ends the run
/// leaves the state as it was.
void skip_update(nn::CausalLMImpl& model, std::span<const Batch> micro_batches, StepState& state, StepResult& result) {
  result.overflow = true;
  const bool expected = std::isfinite(result.loss) && state.scaler.can_back_off();
  if (!expected) {
    result.nonfinite = describe_nonfinite(model, micro_batches, state);
    const int64_t in_a_row = state.nonfinite_in_a_row + 1;
    if (state.options.stop_on_nonfinite || in_a_row >= state.options.max_nonfinite) {
      state.optimizer->zero_grad();
      fail<NonFiniteError>(
          "[step {}] loss and gradients must be finite; {}; {} step(s) in a row were not; lower the "
          "learning rate, look at these rows, or see train.on_nonfinite and train.max_nonfinite",
          result.step, result.nonfinite, in_a_row);
    }
    state.nonfinite_in_a_row = in_a_row;
  }
  state.scaler.update(/*overflow=*/true);
}

void update(StepState& state, const StepResult& result) {
  state.optimizer->step(result.learning_rate, clip_factor(result.grad_norm, state.options.clip_norm));
  state.scaler.update(/*overflow=*/false);
  state.nonfinite_in_a_row = 0;
}

/// The method's own work after a step, with the gradients that the step used.
void follow_up(StepState& state, StepResult& result, bool has_gradients) {
  if (!state.adapters) return;
  state.adapters.after_step(result.step, has_gradients);
  result.rank_budget = state.adapters.rank_budget(result.step);
  if (state.adapters.allocates(result.step)) result.ranks = state.adapters.ranks();
}

void warn_without_targets(StepState& state, int64_t step) {
  if (state.warned_without_targets) return;
  state.warned_without_targets = true;
  log::warn(
      fmt::format("[step {}] a step should have targets; its rows have none, so that nothing was updated; this "
                  "is said once; check labels and length limits of the data",
                  step));
}

}  // namespace

StepResult train_step(nn::CausalLMImpl& model, std::span<const Batch> micro_batches, StepState& state) {
  const Stopwatch clock;
  StepResult result = begin_step(model, micro_batches, state);
  state.optimizer->zero_grad();
  if (result.targets == 0) {
    warn_without_targets(state, result.step);
    follow_up(state, result, /*has_gradients=*/false);
  } else {
    const Sums sums = accumulate_gradients(model, micro_batches, state, result);
    if (finish_gradients(state, sums, result)) {
      update(state, result);
      follow_up(state, result, /*has_gradients=*/true);
    } else {
      skip_update(model, micro_batches, state, result);
      follow_up(state, result, /*has_gradients=*/false);
    }
    state.optimizer->zero_grad();
  }
  state.step = result.step;
  if (result.overflow) ++state.skipped_steps;
  result.peak_bytes = peak_bytes(device_of(model));
  result.step_seconds = clock.seconds();
  result.tokens_per_second = static_cast<double>(result.tokens) / result.step_seconds;
  return result;
}

}  // namespace lora::train
