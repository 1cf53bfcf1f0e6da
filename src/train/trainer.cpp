#include "lora/train/trainer.h"

#include <ATen/ATen.h>

#include <exception>
#include <set>
#include <utility>

#include "core/check.h"
#include "lora/adapters/adapter_io.h"
#include "lora/core/log.h"
#include "lora/train/speed_of_light.h"
#include "train/loading_watch.h"
#include "train/side_copies.h"

namespace lora::train {
namespace {

/// A loader's steps: on the CPU as they come; for a GPU, the next one is fetched and moved while one computes.
class Feed {
 public:
  Feed(data::Loader& loader, const at::Device& device) : loader_(loader) {
    if (device.is_cuda()) copies_.emplace(device);
  }

  std::optional<data::StepData> next() {
    if (!copies_) return loader_.next();
    if (!began_) fetch();
    began_ = true;
    if (error_) std::rethrow_exception(error_);
    if (!ahead_) return std::nullopt;
    in_use_ = std::move(ahead_);
    ahead_.reset();
    auto step = copies_->finish(*in_use_);
    fetch();
    return step;
  }

 private:
  /// An error belongs to the step whose data it spoils.
  void fetch() {
    try {
      if (auto step = loader_.next()) ahead_ = copies_->start(std::move(*step));
    } catch (...) {
      error_ = std::current_exception();
    }
  }

  data::Loader& loader_;
  std::optional<SideCopies> copies_;
  std::optional<SideCopies::Moving> ahead_, in_use_;  ///< the one in use holds what its copies were made of
  std::exception_ptr error_;
  bool began_ = false;
};

/// Parameters that require gradients; a tied one once, under its first name.
NamedParameters trainable_parameters(const nn::CausalLMImpl& model) {
  NamedParameters found;
  std::set<const at::TensorImpl*> seen;
  for (const auto& entry : model.named_parameters()) {
    const bool is_new = seen.insert(entry.value().unsafeGetTensorImpl()).second;
    if (is_new && entry.value().requires_grad()) found.emplace_back(entry.key(), entry.value());
  }
  return found;
}

TrainerOptions resolved(TrainerOptions options) {
  options.optimizer.lr = options.learning_rate;
  options.schedule.lr = options.learning_rate;
  options.schedule.total_steps = options.steps;
  options.step.amp_dtype = options.amp_dtype;
  options.step.clip_norm = options.clip_norm;
  options.scaler.enabled = options.scaler.enabled || options.amp_dtype == at::kHalf;
  return options;
}

}  // namespace

Trainer::Trainer(std::shared_ptr<nn::CausalLMImpl> model, AdapterSets adapters, const TrainerOptions& options)
    : model_(std::move(model)), options_(resolved(options)) {
  model_->to(options_.device);
  model_->train();
  state_.options = options_.step;
  state_.schedule = options_.schedule;
  state_.adapters = std::move(adapters);
  state_.optimizer = make_optimizer(parameter_groups(trainable_parameters(*model_), options_.optimizer), options_.optimizer);
  state_.scaler = GradScaler(options_.scaler);
}

Trainer& Trainer::on_step(Callback callback) {
  callbacks_.push_back(std::move(callback));
  return *this;
}

StepResult Trainer::step(std::span<const Batch> micro_batches) {
  return run({.micro_batches = {micro_batches.begin(), micro_batches.end()}});
}

std::optional<StepResult> Trainer::fit(data::Loader& loader, const std::function<bool()>& should_stop) {
  std::optional<StepResult> last;
  Feed feed(loader, options_.device);
  LoadingWatch loading;
  while (state_.step < options_.steps) {
    const auto data = feed.next();
    if (!data) break;
    last = run(*data);
    const auto complaint = loading.add(*last, {loader.num_workers(), loader.chooses_workers()});
    if (complaint) log::warn(*complaint);
    if (should_stop && should_stop()) break;
  }
  return last;
}

StepResult Trainer::run(const data::StepData& data) {
  StepResult result = train_step(*model_, data.micro_batches, state_);
  result.epoch = data.epoch;
  result.data_seconds = data.data_seconds;
  result.data_read_seconds = data.read_seconds;
  result.data_transform_seconds = data.transform_seconds;
  result.tokens_per_second = static_cast<double>(result.tokens) / (result.step_seconds + result.data_seconds);
  if (options_.peak_flops_per_second > 0) {
    const double flops_per_second = step_flops(*model_, data.micro_batches) / result.step_seconds;
    result.sol_percent = 100 * flops_per_second / options_.peak_flops_per_second;
  }
  for (const auto& callback : callbacks_) callback(result);
  return result;
}

Callback log_every(int64_t interval) {
  return [interval](StepResult& result) {
    if (interval < 1 || result.step % interval != 0) return;
    log::info(fmt::format("step {}: loss {:.4f}, lr {:.3g}, grad norm {:.3g}, {:.0f} tokens/s{}", result.step, result.loss,
                          result.learning_rate, result.grad_norm, result.tokens_per_second,
                          result.overflow ? ", update skipped" : ""));
  };
}

Callback save_every(int64_t interval, const AdapterSet& adapters, const Path& directory) {
  return [=](StepResult& result) {
    if (interval >= 1 && result.step % interval == 0) save_adapter(adapters, directory);
  };
}

}  // namespace lora::train
