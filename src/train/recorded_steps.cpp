#include "train/recorded_steps.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/check.h"
#include "lora/core/log.h"
#include "lora/core/stopwatch.h"
#include "lora/nn/linear.h"
#include "lora/nn/loss.h"
#include "lora/ops/autocast.h"
#include "lora/ops/device.h"
#include "train/device_of.h"

// Legend: B batch, S sequence, T targets.
namespace lora::train {
namespace {

/// The usual way runs so often first: libraries settle, and a shape that comes once is not worth a record.
constexpr int kTimesBefore = 3;
/// Each keeps gradients and inputs of its own.
constexpr size_t kMostRecords = 16;
/// Starting work on the device takes this share of the step at least, or there is nothing to gain.
constexpr double kLeastLaunchShare = 0.9;
/// Largest difference of a record from the usual way, of each tensor's norm: sums in another order, no more.
constexpr double kTolerance = 1e-2;

int64_t positions_of(const Batch& batch) { return batch.input_ids_BS.size(0) * (batch.input_ids_BS.size(1) - 1); }

/// Why batches of this kind cannot be recorded; empty: they can.
std::string obstacle(nn::CausalLMImpl& model, const Batch& batch) {
  if (!batch.segment_lengths.empty()) return "packed rows differ in their sequences from step to step";
  if (batch.attention_mask_BS.defined() || batch.position_ids_BS.defined()) return "the batch has a mask or positions of its own";
  if (!model.is_repeatable()) return "the model looks at a batch's tokens";
  if (model.recompute != nn::Recompute::kNone) return "train.recompute puts random number generators back";
  const auto modules = model.modules(/*include_self=*/false);
  const bool streams = std::any_of(modules.begin(), modules.end(), [](const auto& module) {
    const auto* linear = module->template as<nn::LinearImpl>();
    return linear != nullptr && linear->weight_is_streamed();
  });
  if (streams) return "model.offload brings other weights into the same memory";
  return "";
}

struct Pass {
  at::Tensor loss;
  std::vector<at::Tensor> gradients;
};

Pass forward_and_backward(nn::CausalLMImpl& model, const Batch& batch, const at::Tensor& factor,
                          const std::vector<at::Tensor>& parameters, at::ScalarType amp_dtype) {
  at::Tensor loss;
  {
    const AutocastGuard autocast(factor.device().type(), amp_dtype);
    loss = nn::causal_lm_loss_sum(model, batch);
  }
  auto gradients = torch::autograd::grad({loss}, parameters, {factor.to(loss.scalar_type())}, /*retain_graph=*/std::nullopt,
                                         /*create_graph=*/false, /*allow_unused=*/true);
  return {loss.detach(), std::move(gradients)};
}

/// The largest relative difference of the loss and of each gradient.
double difference(const Pass& a, const Pass& b) {
  std::vector<at::Tensor> relative = {(a.loss - b.loss).abs() / b.loss.abs().clamp_min(1e-12)};
  for (size_t i = 0; i < a.gradients.size(); ++i) {
    if (a.gradients[i].defined() != b.gradients[i].defined()) return 1;
    if (!a.gradients[i].defined()) continue;
    const at::Tensor ours = a.gradients[i].to(at::kFloat), theirs = b.gradients[i].to(at::kFloat);
    relative.push_back((ours - theirs).norm() / theirs.norm().clamp_min(1e-30));
  }
  for (at::Tensor& one : relative) one = one.to(at::kDouble);
  return at::stack(relative).max().item<double>();
}

}  // namespace

RecordedShape recorded_shape(const Batch& batch) {
  const int64_t positions = positions_of(batch), step = std::max<int64_t>(1, (positions + 7) / 8);
  const int64_t targets = batch.targets.label_T.numel();
  return {batch.input_ids_BS.size(0), batch.input_ids_BS.size(1), std::min(positions, (targets + step - 1) / step * step)};
}

Batch filled_up(const Batch& batch, const RecordedShape& shape) {
  Batch filled = batch;
  filled.input_ids_BS = batch.input_ids_BS.clone();
  filled.labels_BS = batch.labels_BS.clone();
  if (shape.targets == positions_of(batch)) {
    filled.targets.label_T = batch.labels_BS.slice(1, 1).reshape(-1).clone();
    filled.targets.position_T = at::arange(shape.targets, batch.labels_BS.options());
  } else {
    const int64_t missing = shape.targets - batch.targets.label_T.numel();
    filled.targets.label_T = at::constant_pad_nd(batch.targets.label_T, {0, missing}, kIgnoreLabel);
    filled.targets.position_T = at::constant_pad_nd(batch.targets.position_T, {0, missing}, 0);
  }
  filled.targets.first_F = at::arange(batch.labels_BS.size(0), batch.labels_BS.options());
  filled.targets.first_label_F = batch.labels_BS.select(1, 0).clone();
  return filled;
}

std::optional<at::Tensor> RecordedSteps::run(nn::CausalLMImpl& model, const Batch& batch, double factor, at::ScalarType amp_dtype,
                                             bool shares) {
  if (!model.fast_paths.recorded_step || !batch.targets.defined() || batch.targets.label_T.numel() == 0) return std::nullopt;
  const std::string why_not = obstacle(model, batch);
  if (!why_not.empty()) {
    say_once(why_not);
    return std::nullopt;
  }
  forget_when_changed(model, amp_dtype);
  if (given_up_) return std::nullopt;

  const RecordedShape shape = recorded_shape(batch);
  auto found = records_.find(shape);
  if (found == records_.end()) {
    if (records_.size() >= kMostRecords || ++times_[shape] <= kTimesBefore) return std::nullopt;
    auto record = made(model, batch, shape, factor, amp_dtype);
    if (!record) return std::nullopt;
    found = records_.emplace(shape, std::move(*record)).first;
  }
  Record& record = found->second;
  const Batch filled = filled_up(batch, shape);
  record.batch.input_ids_BS.copy_(filled.input_ids_BS);
  record.batch.targets.label_T.copy_(filled.targets.label_T);
  record.batch.targets.position_T.copy_(filled.targets.position_T);
  record.batch.targets.first_label_F.copy_(filled.targets.first_label_F);
  record.factor.fill_(factor);
  record.work->run();

  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const at::Tensor& gradient = record.gradients[i];
    at::Tensor& sum = parameters_[i].mutable_grad();
    if (!gradient.defined()) continue;
    if (sum.defined()) {
      sum.add_(gradient);
    } else {
      sum = shares ? gradient.clone() : gradient;  // the next run overwrites the record's own
    }
  }
  return record.loss.clone();
}

/// Records hold addresses: other parameters, switches or types make them void.
void RecordedSteps::forget_when_changed(nn::CausalLMImpl& model, at::ScalarType amp_dtype) {
  std::vector<const void*> now;
  for (const at::Tensor& parameter : model.parameters()) {
    now.push_back(parameter.const_data_ptr());
    now.push_back(parameter.requires_grad() ? parameter.unsafeGetTensorImpl() : nullptr);
  }
  const auto flag = [](int64_t value) { return reinterpret_cast<const void*>(value); };
  for (const auto& name : nn::FastPaths::names()) now.push_back(flag(model.fast_paths.at(name)));
  now.push_back(flag(static_cast<int64_t>(amp_dtype)));
  now.push_back(flag(model.is_training()));
  if (now == seen_) return;
  seen_ = std::move(now);
  records_.clear();
  times_.clear();
  given_up_ = false;
  parameters_.clear();
  std::set<const at::TensorImpl*> known;
  for (const at::Tensor& parameter : model.parameters()) {
    if (parameter.requires_grad() && known.insert(parameter.unsafeGetTensorImpl()).second) parameters_.push_back(parameter);
  }
}

std::optional<RecordedSteps::Record> RecordedSteps::made(nn::CausalLMImpl& model, const Batch& batch, const RecordedShape& shape,
                                                         double factor, at::ScalarType amp_dtype) {
  const at::Device device = batch.input_ids_BS.device();
  Record record;
  record.batch = filled_up(batch, shape);
  record.factor = at::full({}, factor, at::TensorOptions(device).dtype(at::kFloat));
  const auto pass = [&] { return forward_and_backward(model, record.batch, record.factor, parameters_, amp_dtype); };

  const at::Tensor random_before = generator_state(device);
  record.factor.item();  // nothing else is under way
  const Stopwatch clock;
  const Pass usual = pass();
  const double launch_seconds = clock.seconds();
  usual.loss.item();
  const double seconds = clock.seconds();
  if (!at::equal(random_before, generator_state(device))) return given_up("the model draws random numbers (dropout)");
  if (launch_seconds < kLeastLaunchShare * seconds) {
    return given_up(
        fmt::format("starting work takes {:.1f} of the {:.1f} ms that the device works", 1e3 * launch_seconds, 1e3 * seconds));
  }
  try {
    record.work = ops::record_work(device, [&] {
      Pass recorded = pass();
      record.loss = recorded.loss;
      record.gradients = std::move(recorded.gradients);
    });
  } catch (const std::exception& error) {
    const std::string_view text = error.what();
    return given_up(fmt::format("something in the model cannot be: {}", text.substr(0, text.find('\n'))));
  }
  record.work->run();
  const double off = difference({record.loss, record.gradients}, usual);
  if (std::isnan(off)) {  // an overflow, which tells nothing; another time
    times_[shape] = 0;
    return std::nullopt;
  }
  if (off > kTolerance) {
    return given_up(fmt::format("the record gave other gradients than the usual way, off by {:.2g} of their norm", off));
  }
  return record;
}

std::nullopt_t RecordedSteps::given_up(const std::string& why) {
  given_up_ = true;
  say_once(why);
  return std::nullopt;
}

void RecordedSteps::say_once(const std::string& why) {
  if (said_.insert(why).second) log::info(fmt::format("steps are not recorded on the device: {}", why));
}

}  // namespace lora::train
