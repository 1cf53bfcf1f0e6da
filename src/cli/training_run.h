// A run of lora train or lora finetune: from its configuration to the files that it leaves.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/best_result.h"
#include "cli/run_directory.h"
#include "lora/adapters/adapter_sets.h"
#include "lora/adapters/freeze.h"
#include "lora/core/stopwatch.h"
#include "lora/data/dataset.h"
#include "lora/train/callback_registry.h"
#include "lora/train/metrics.h"
#include "lora/train/progress.h"
#include "lora/train/trainer.h"

namespace lora::cli {

/// A row split for showing what the model makes of it.
struct SampleRow {
  std::vector<int64_t> prompt_ids, response_ids;
};

/// One run from its configuration to the files it leaves; a member per stage's result.
class TrainingRun {
 public:
  TrainingRun(config::RunConfig config, RunStart start) : config_(std::move(config)), start_(std::move(start)) {}

  /// The exit code.
  int run();

 private:
  void prepare();
  config::RunConfig with_base_of_start() const;
  void leave_out_overlap();
  void warn_about_schedule() const;
  void make_callbacks();
  void announce() const;
  bool has_result() const;
  void begin();
  int train();
  void take_steps(train::Trainer& trainer, train::Progress& progress);
  void start_or_go_on(train::Trainer& trainer);
  std::optional<std::string> reason_to_end(const train::EvalHistory& evaluations, const std::string& stopped_by) const;
  bool has_ended(const train::StepState& state) const { return reason_to_end(state.evaluations, state.stopped_by).has_value(); }
  std::optional<std::string> how_steps_ended() const;
  void add_callbacks(train::Trainer& trainer, train::MetricsFile& metrics, train::Progress& progress);
  void evaluate_on_the_way(train::StepState& state, train::StepResult& result);
  void ask_callbacks(train::StepState& state, const train::StepResult& result);
  ResultParts parts() const {
    return {.adapter = static_cast<bool>(adapters_), .model = !adapters_ || !config_.freeze.train.empty()};
  }
  void save_best();
  void take_best();
  void say_best() const;
  void save_checkpoint(train::Trainer& trainer);
  void save_base(const Path& path);
  void save_model(const Path& path, bool quantized);
  void write_model(const Path& directory, bool quantized);
  void save_result(const train::StepState& state);
  void save_all(train::Trainer& trainer);
  void save_last_good_state(train::Trainer& trainer);
  at::ScalarType product_dtype(at::ScalarType amp_dtype) const;
  std::optional<double> evaluate();
  std::vector<std::string> generate_samples();
  std::vector<SampleRow> sample_rows() const;
  void write_report(const Stopwatch& total);

  config::RunConfig config_;
  RunStart start_;
  std::optional<std::string> steps_ended_;  ///< how, before this run began; nothing: there are more to take
  at::Device device_ = at::kCPU;
  int64_t pad_id_ = 0, total_steps_ = 0, total_epochs_ = 0, last_saved_step_ = -1;
  std::shared_ptr<const data::Tokenizer> tokenizer_;
  std::shared_ptr<nn::CausalLMImpl> model_;
  data::Dataset train_set_;
  std::optional<data::Dataset> eval_set_;
  AdapterSets adapters_;
  FreezeReport freeze_report_;
  std::vector<std::pair<std::string, train::RunCallback>> callbacks_;  ///< by their names
  train::EvalHistory evaluations_;                                     ///< at the end
  std::optional<double> loss_before_, loss_after_;
  std::vector<std::string> samples_before_, samples_after_;
};

}  // namespace lora::cli
