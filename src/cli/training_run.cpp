#include "cli/training_run.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>

#include "cli/adapter_setup.h"
#include "cli/command.h"
#include "cli/options.h"
#include "cli/run_setup.h"
#include "cli/signals.h"
#include "core/check.h"
#include "lora/core/file.h"
#include "lora/core/log.h"
#include "lora/core/text.h"
#include "lora/data/format_registry.h"
#include "lora/data/overlap.h"
#include "lora/generate/generate.h"
#include "lora/io/carry_over.h"
#include "lora/io/dtype.h"
#include "lora/ops/device.h"
#include "lora/train/checkpoint.h"
#include "lora/train/evaluate.h"
#include "lora/train/report.h"
#include "lora/train/speed_of_light.h"

namespace lora::cli {

int TrainingRun::run() {
  const Stopwatch total;
  prepare();
  steps_ended_ = how_steps_ended();
  if (steps_ended_ && has_result()) {
    log::info(fmt::format("{} is finished: {}", config_.run.output_dir.string(), *steps_ended_));
    return kDone;
  }
  require_no_followers(start_);
  make_callbacks();
  announce();
  begin();
  if (const int signal = train(); signal != 0) return exit_code_of_signal(signal);
  if (config_.checkpoint.load_best_at_end) take_best();
  loss_after_ = evaluate();
  samples_after_ = generate_samples();
  say_best();
  if (config_.log.report) write_report(total);
  mark_finished(config_);
  return kDone;
}

/// Whether the run that took all steps lived to leave what they gave.
bool TrainingRun::has_result() const {
  const auto is_there = [this](const char* name) { return std::filesystem::exists(config_.run.output_dir / name); };
  return !is_marked_unfinished(config_) && (!parts().adapter || is_there("adapter")) && (!parts().model || is_there("model"));
}

/// From here on the run leaves its own files in the directory.
void TrainingRun::begin() {
  clear_obsolete(start_);
  mark_unfinished(config_);
  for (const auto& [file, text] : start_.notes) write_file_atomically(file, text);
  write_file_atomically(config_.run.output_dir / "config.yaml", config::dump_run_config(config_));
}

/// All steps, up to a saved state. The signal that stopped them, or 0.
int TrainingRun::train() {
  auto options = trainer_options(config_, device_, total_steps_);
  options.peak_flops_per_second = train::matmul_flops_per_second(device_, product_dtype(options.amp_dtype));
  train::Trainer trainer(model_, adapters_, options);
  start_or_go_on(trainer);
  train::MetricsFile metrics(config_.run.output_dir / config_.log.metrics, start_.first_step);
  train::Progress progress(total_steps_, config_.train.log_interval, total_epochs_);
  add_callbacks(trainer, metrics, progress);

  if (!steps_ended_) take_steps(trainer, progress);
  save_all(trainer);
  const train::StepState& state = trainer.state();
  evaluations_ = state.evaluations;
  if (const int signal = stop_signal(); signal != 0) {
    log::warn(fmt::format("stopped after step {}; the state is saved, the same command goes on from there", state.step));
    return signal;
  }
  const auto reason = reason_to_end(state.evaluations, state.stopped_by);
  if (reason) log::info(fmt::format("ended after step {} of {}: {}", state.step, total_steps_, *reason));
  return 0;
}

void TrainingRun::take_steps(train::Trainer& trainer, train::Progress& progress) {
  auto loader_settings = loader_options(config_, pad_id_, row_room(config_, *model_));
  loader_settings.first_step = start_.first_step;
  loader_settings.num_steps = total_steps_;
  loader_settings.pinned = device_.is_cuda();
  data::Loader loader(train_set_, loader_settings);
  try {
    trainer.fit(loader, [&] { return stop_signal() != 0 || has_ended(trainer.state()); });
  } catch (const NonFiniteError&) {
    progress.finish();
    save_last_good_state(trainer);
    throw;
  }
  progress.finish();
}

/// With the state of a checkpoint, or with what is measured and saved before the first step.
void TrainingRun::start_or_go_on(train::Trainer& trainer) {
  if (!start_.checkpoint) {
    if (const auto base = own_base(config_)) save_base(*base);
    loss_before_ = evaluate();
    samples_before_ = generate_samples();
    return;
  }
  train::load_checkpoint(*start_.checkpoint, *model_, trainer.state());
  if (!steps_ended_) trainer.state().stopped_by.clear();  // by one that this run does not have
  if (config_.checkpoint.keep_best) train::restore_best(*start_.checkpoint, best_directory(config_));
}

/// Why the run ends before its last step, or nothing.
std::optional<std::string> TrainingRun::reason_to_end(const train::EvalHistory& evaluations,
                                                      const std::string& stopped_by) const {
  const auto& patience = config_.train.early_stop.patience;
  if (patience && evaluations.without_improvement >= *patience) {
    return fmt::format("the held-out loss did not improve in {} evaluations (train.early_stop)", evaluations.without_improvement);
  }
  const auto& names = config_.train.callbacks;
  if (std::find(names.begin(), names.end(), stopped_by) == names.end()) return std::nullopt;
  return fmt::format("the callback {} asked for it", stopped_by);
}

/// How its steps ended, whatever became of the result; nothing: there are more to take.
std::optional<std::string> TrainingRun::how_steps_ended() const {
  if (start_.first_step >= total_steps_) return fmt::format("all {} steps are done", total_steps_);
  if (!start_.checkpoint) return std::nullopt;
  const auto position = train::checkpoint_position(*start_.checkpoint);
  const auto reason = reason_to_end(position.evaluations, position.stopped_by);
  return reason ? std::optional(fmt::format("it ended after step {}: {}", position.step, *reason)) : std::nullopt;
}

void TrainingRun::prepare() {
  device_ = parse_device(config_.run.device);
  if (config_.run.threads > 0) at::set_num_threads(static_cast<int>(config_.run.threads));
  seed_generators(static_cast<uint64_t>(config_.run.seed));
  tokenizer_ = make_tokenizer(config_);
  model_ = make_model(with_base_of_start(), device_);
  if (tokenizer_ != nullptr) {
    require<ShapeError>(tokenizer_->vocab_size() <= model_->vocab_size(),
                        "[tokenizer] the tokenizer's pieces must be in the model's vocabulary of {}; found {}",
                        model_->vocab_size(), tokenizer_->vocab_size());
    if (data::needs_tokenizer(config_.data.format)) require_same_tokens(*model_, *tokenizer_);
    pad_id_ = std::max<int64_t>(tokenizer_->pad_id(), 0);
  }
  check_for_stop();
  const auto make_set = [&](const Path& file) {
    return make_dataset(config_, file, *model_, tokenizer_.get(), token_cache_dir(config_));
  };
  train_set_ = make_set(*config_.data.train.path);
  if (config_.data.eval.path) eval_set_ = make_set(*config_.data.eval.path);
  leave_out_overlap();
  check_supervision(config_, train_set_, tokenizer_.get(), *model_);
  auto counting = loader_options(config_, pad_id_, row_room(config_, *model_));
  counting.workers = 0;
  const data::Loader probe(train_set_, counting);
  const int64_t epoch_steps = probe.steps_per_epoch();
  total_steps_ = config_.train.max_steps >= 0 ? config_.train.max_steps : config_.train.epochs * epoch_steps;
  total_epochs_ = epoch_steps > 0 ? (total_steps_ + epoch_steps - 1) / epoch_steps : 0;
  adapters_ = make_adapters(config_, *model_, tokenizer_.get(), total_steps_, start_.checkpoint);
  if (!start_.checkpoint)
    start_adapters(config_, *model_, adapters_, train_set_, loader_options(config_, pad_id_, row_room(config_, *model_)));
  freeze_report_ = freeze(config_, *model_, adapters_);
  warn_about_schedule();
  check_for_stop();
}

/// The run file with the base that the adapter fits which the run starts from.
config::RunConfig TrainingRun::with_base_of_start() const {
  if (config_.adapter.method == "none") return config_;
  if (start_.checkpoint) return with_base_of(*start_.checkpoint / "adapter", config_);
  return config_.adapter.init_from ? with_base_of(*config_.adapter.init_from, config_) : config_;
}

void TrainingRun::warn_about_schedule() const {
  const int64_t warmup = config_.train.lr_schedule.warmup_steps;
  if (warmup > 0 && warmup >= total_steps_) {
    log::warn(
        fmt::format("[train.lr_schedule] warm-up should end before the run; found {} warm-up steps of {} steps: the "
                    "learning rate never reaches its full value",
                    warmup, total_steps_));
  }
}

void TrainingRun::make_callbacks() {
  const train::CallbackContext context{config_.run.output_dir, start_.first_step, total_steps_};
  for (const auto& name : config_.train.callbacks) callbacks_.emplace_back(name, train::make_callback(name, context));
}

void TrainingRun::announce() const {
  log::info(freeze_report_.summary());
  log::info(fmt::format("{} rows, {} steps of {} x {} rows, {}", train_set_.size(), total_steps_, config_.train.grad_accum,
                        config_.train.micro_batch, describe_machine(device_)));
}

/// In this order, so that lines, callbacks and checkpoints know of the step's evaluation, and checkpoints of what ends the run.
void TrainingRun::add_callbacks(train::Trainer& trainer, train::MetricsFile& metrics, train::Progress& progress) {
  const int64_t save_interval = config_.checkpoint.every_steps;
  trainer.on_step([this, &trainer](train::StepResult& result) { evaluate_on_the_way(trainer.state(), result); });
  trainer.on_step([&metrics, &progress](train::StepResult& result) {
    metrics.write(result);
    progress.show(result);
  });
  trainer.on_step([this, &trainer](train::StepResult& result) { ask_callbacks(trainer.state(), result); });
  trainer.on_step([this, &trainer, save_interval](train::StepResult& result) {
    if (save_interval > 0 && result.step % save_interval == 0) save_checkpoint(trainer);
  });
}

void TrainingRun::evaluate_on_the_way(train::StepState& state, train::StepResult& result) {
  const int64_t interval = config_.train.eval_interval;
  if (interval == 0 || result.step % interval != 0) return;
  result.eval_loss = evaluate();
  if (!result.eval_loss) return;
  result.is_best = state.evaluations.add(result.step, *result.eval_loss, config_.train.early_stop.min_delta);
  if (result.is_best && config_.checkpoint.keep_best) save_best();
}

void TrainingRun::ask_callbacks(train::StepState& state, const train::StepResult& result) {
  for (const auto& [name, callback] : callbacks_) {
    const bool stops = callback(result) == train::AfterStep::kStop;
    if (stops && state.stopped_by.empty()) state.stopped_by = name;
  }
}

void TrainingRun::save_checkpoint(train::Trainer& trainer) {
  train::CheckpointContent content{config_.checkpoint.save_optimizer, config::dump_run_config(config_), {}};
  const Path best = best_directory(config_);
  if (config_.checkpoint.keep_best && std::filesystem::exists(best)) content.best = best;
  train::save_checkpoint(config_.run.output_dir, *model_, trainer.state(), content, config_.checkpoint.keep);
  last_saved_step_ = trainer.state().step;
}

/// The result as it is now, as the best so far.
void TrainingRun::save_best() {
  AtomicDirectory best(best_directory(config_));
  if (parts().adapter) save_adapters(adapters_, best.path());
  if (parts().model) {
    const Path model = parts().adapter ? best.path() / "model" : best.path();
    std::filesystem::create_directories(model);
    write_model(model, /*quantized=*/false);
  }
  best.commit();
}

/// Makes the best result that of the run, and goes on with what its files give.
void TrainingRun::take_best() {
  if (!std::filesystem::exists(best_directory(config_))) {
    log::warn(
        "[checkpoint.load_best_at_end] an evaluation must have given a best result; found none; the result is the last state");
    return;
  }
  const ResultParts result = parts();
  publish_best(config_, result);
  adapters_ = {};
  model_.reset();
  LoadedResult best = load_result(config_, result, device_);
  model_ = std::move(best.model);
  adapters_ = std::move(best.adapters);
}

void TrainingRun::say_best() const {
  if (!evaluations_.best_loss) return;
  const auto& checkpoint = config_.checkpoint;
  log::info(fmt::format("the best held-out loss on the way was {:.4f}, after step {}{}", *evaluations_.best_loss,
                        evaluations_.best_step,
                        checkpoint.load_best_at_end ? ": the result of this run"
                        : checkpoint.keep_best      ? fmt::format("; it is kept in {}", best_directory(config_).string())
                                                    : ""));
}

/// Does with evaluation rows that occur in the training data as data.on_overlap says.
void TrainingRun::leave_out_overlap() {
  if (!eval_set_) return;
  const auto dropped = overlap_to_drop(config_, data::find_equal_rows(train_set_, *eval_set_), eval_set_->size());
  if (!dropped.empty()) eval_set_ = data::without_rows(*eval_set_, dropped);
}

/// The base in few bits, which the adapter fits alone.
void TrainingRun::save_base(const Path& path) {
  log::info(fmt::format("the base that the adapter fits is saved in {}", path.string()));
  save_model(path, /*quantized=*/true);
}

void TrainingRun::save_model(const Path& path, bool quantized) {
  AtomicDirectory directory(path);
  write_model(directory.path(), quantized);
  directory.commit();
}

/// Into an existing directory.
void TrainingRun::write_model(const Path& directory, bool quantized) {
  models::SaveOptions options;
  options.quantized = quantized;
  if (config_.tokenizer.path) {
    options.copy_tokenizer_from = config_.tokenizer.path;
  } else {
    options.copy_tokenizer_from = config_.model.path;
  }
  architecture_of(config_).save(*model_, directory, options);
  if (config_.model.path) io::carry_over_config(*config_.model.path, directory);
}

/// The adapter, and the model when base weights were trained too.
void TrainingRun::save_result(const train::StepState& state) {
  if (adapters_) save_adapters(adapters_, config_.run.output_dir / "adapter");
  if (!parts().model) return;
  if (adapters_) log::info("freeze.train frees base weights, which an adapter file cannot hold: they are in model/");
  save_model(config_.run.output_dir / "model", /*quantized=*/false);
  log::debug(fmt::format("saved the state of step {}", state.step));
}

void TrainingRun::save_all(train::Trainer& trainer) {
  if (last_saved_step_ != trainer.state().step) save_checkpoint(trainer);
  save_result(trainer.state());
}

/// A step whose values are not finite changes nothing, so that the state is that of the step before.
void TrainingRun::save_last_good_state(train::Trainer& trainer) {
  if (trainer.state().step == start_.first_step) return;
  save_all(trainer);
  log::warn(fmt::format("the state after step {}, the last before values stopped being finite, is saved", trainer.state().step));
}

/// The type in which the model's products run.
at::ScalarType TrainingRun::product_dtype(at::ScalarType amp_dtype) const {
  return amp_dtype == at::kFloat ? model_->stored_dtype() : amp_dtype;
}

std::optional<double> TrainingRun::evaluate() {
  if (!eval_set_) return std::nullopt;
  const auto amp = trainer_options(config_, device_, total_steps_).amp_dtype;
  const double loss = train::evaluate(*model_, *eval_set_, config_.train.micro_batch, device_, amp, pad_id_).loss;
  log::info(fmt::format("held-out loss {:.4f}", loss));
  return loss;
}

std::vector<std::string> TrainingRun::generate_samples() {
  std::vector<std::string> texts;
  if (tokenizer_ == nullptr) return texts;
  const auto options = generate_options(config_, *model_);
  for (const auto& row : sample_rows())
    texts.push_back(generated_text(*tokenizer_, generate::complete(*model_, row.prompt_ids, options, device_)));
  return texts;
}

/// The first held-out rows (training rows without them), each cut where its answer begins: behind the start token of models that
/// have one, which may be a target itself.
std::vector<SampleRow> TrainingRun::sample_rows() const {
  constexpr size_t kPromptOfPlainText = 32;
  const data::Dataset& set = eval_set_ ? *eval_set_ : train_set_;
  std::vector<SampleRow> rows;
  for (int64_t row = 0; row < std::min(set.size(), config_.log.samples); ++row) {
    const auto [ids, labels, number] = set.example(row);
    auto length = static_cast<size_t>(
        std::find_if(labels.begin(), labels.end(), [](int32_t label) { return label != kIgnoreLabel; }) - labels.begin());
    if (length <= 1) length = std::min(kPromptOfPlainText, ids.size() / 2);
    if (const auto start = model_->answer_start(); !start.empty()) {
      const auto last = std::find(ids.begin(), ids.end(), start.back());
      length = last == ids.end() ? 0 : std::max(length, static_cast<size_t>(last - ids.begin()) + 1);
    }
    if (length == 0) continue;
    const auto answer = ids.begin() + static_cast<std::ptrdiff_t>(length);
    rows.push_back({{ids.begin(), answer}, {answer, ids.end()}});
  }
  return rows;
}

void TrainingRun::write_report(const Stopwatch& total) {
  train::ReportContent content;
  content.title = fmt::format("{} {}", config_.run.mode.value_or("run"), config_.run.output_dir.filename().string());
  content.steps = train::MetricsFile::read(config_.run.output_dir / config_.log.metrics);
  const int64_t trainable = freeze_report_.trainable, parameters = freeze_report_.total;
  content.summary = {
      {"Trainable parameters", fmt::format("{} of {} ({:.2f} %)", with_thousands(trainable), with_thousands(parameters),
                                           100.0 * static_cast<double>(trainable) / static_cast<double>(parameters))},
      {"Time in all", fmt::format("{:.1f} s", total.seconds())}};
  if (evaluations_.best_loss) {
    content.summary.emplace_back("Best held-out loss on the way",
                                 fmt::format("{:.4f}, after step {}", *evaluations_.best_loss, evaluations_.best_step));
  }
  content.environment = {{"machine", describe_machine(device_)}, {"program", "lora " LORA_VERSION}};
  content.rank_modules = adapters_.rank_modules();
  content.config_yaml = config::dump_run_config(config_);
  content.eval_loss_before = loss_before_;
  content.eval_loss_after = loss_after_;
  const auto rows = sample_rows();
  for (size_t i = 0; i < samples_after_.size(); ++i) {
    content.samples.push_back({readable_text(*tokenizer_, rows[i].prompt_ids),
                               i < samples_before_.size() ? samples_before_[i] : "", samples_after_[i],
                               readable_text(*tokenizer_, rows[i].response_ids)});
  }
  const Path file = config_.run.output_dir / "report.html";
  write_file_atomically(file, train::report_html(content));

  if (loss_before_ && loss_after_) fmt::print("held-out loss   {:.4f} -> {:.4f}\n", *loss_before_, *loss_after_);
  for (const auto& sample : content.samples) {
    fmt::print("\nprompt   {}\nbefore   {}\nafter    {}\n", sample.prompt, sample.before, sample.after);
  }
  fmt::print("\n{:<8} {}\nreport   {}\n", adapters_ ? "adapter" : "model",
             (config_.run.output_dir / (adapters_ ? "adapter" : "model")).string(), file.string());
}

}  // namespace lora::cli
