// lora eval and lora predict: what a trained model makes of held-out rows.
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/prediction_file.h"
#include "cli/run_setup.h"
#include "cli/scoring_thread.h"
#include "cli/signals.h"
#include "core/check.h"
#include "formats/json.h"
#include "lora/core/file.h"
#include "lora/core/log.h"
#include "lora/core/random.h"
#include "lora/core/stopwatch.h"
#include "lora/data/format_registry.h"
#include "lora/data/glm_adgen.h"
#include "lora/eval/metric_set.h"
#include "lora/formats/jsonl.h"
#include "lora/generate/complete_all.h"
#include "lora/ops/device.h"
#include "lora/train/evaluate.h"

namespace lora::cli {
namespace {

using config::RunConfig;
using formats::OrderedJson;

struct EvaluationCommand {
  std::string name;  ///< eval or predict
  std::string run_file, adapter, device;
  std::vector<std::string> overrides;
  std::string predictions;  ///< of eval: answers that are there already
  bool overwrite = false, json = false;

  int run() const;
};

/// A row to answer, and what was expected.
struct Question {
  generate::PromptRow prompt;
  std::string text, reference;
};

/// Whether the rows are questions with answers.
bool has_answers(const RunConfig& config) { return data::has_answers(config.data.format); }

/// The tokens of a row before the last run of targets: earlier answers of a conversation are part of the question.
std::vector<int64_t> question_ids(const data::Example& example) {
  const auto is_target = [](int32_t label) { return label != kIgnoreLabel; };
  const auto end = std::find_if(example.labels.rbegin(), example.labels.rend(), is_target);
  const auto begin = std::find_if_not(end, example.labels.rend(), is_target);
  return {example.input_ids.begin(), example.input_ids.begin() + (example.labels.rend() - begin)};
}

/// Model, adapters and data of one evaluation.
class Evaluation {
 public:
  Evaluation(RunConfig config, const std::string& adapter);

  train::EvalResult loss();
  /// Generates what is not in `file` yet, row by row into it and `scores` (may be null).
  void predict(PredictionFile& file, ScoringThread* scores);
  /// Tells runs apart whose predictions would differ.
  std::string identity() const;
  const RunConfig& config() const { return config_; }
  std::vector<int64_t> row_numbers() const;

 private:
  std::vector<NamedAdapter> chosen_adapters(const std::string& given) const;
  std::vector<Question> questions() const;
  Question question(int64_t row) const;
  generate::GenerateOptions options() const;

  RunConfig config_;
  at::Device device_;
  std::shared_ptr<const data::Tokenizer> tokenizer_;
  std::shared_ptr<nn::CausalLMImpl> model_;
  std::vector<NamedAdapter> chosen_adapters_;
  AdapterSets adapters_;
  data::Dataset rows_;
  int64_t pad_id_ = 0;
};

Evaluation::Evaluation(RunConfig config, const std::string& adapter)
    : config_(std::move(config)), device_(parse_device(config_.run.device)) {
  if (config_.run.threads > 0) at::set_num_threads(static_cast<int>(config_.run.threads));
  tokenizer_ = make_tokenizer(config_);
  model_ = make_model(config_, device_);
  if (data::needs_tokenizer(config_.data.format)) require_same_tokens(*model_, *tokenizer_);
  chosen_adapters_ = chosen_adapters(adapter);
  adapters_ = load_adapters(*model_, chosen_adapters_);
  for (const auto& one : chosen_adapters_) log::info(fmt::format("adapter {}", one.directory.string()));
  if (!adapters_) log::info("no adapter: the model alone");
  model_->eval();
  if (tokenizer_ != nullptr) pad_id_ = std::max<int64_t>(tokenizer_->pad_id(), 0);
  data::DatasetOptions options = dataset_options(config_, *model_);
  options.keep_text_pairs = has_answers(config_) ? std::numeric_limits<int64_t>::max() : 0;
  rows_ = data::load_dataset(*config_.data.eval.path, options, tokenizer_.get());
  log::info(fmt::format("{}: {} rows, {} truncated, {} bad", config_.data.eval.path->filename().string(), rows_.num_rows,
                        rows_.num_truncated, rows_.num_bad_rows));
  for (const auto& reason : rows_.bad_row_reasons) log::warn("left out: " + reason);
}

/// --adapter, adapter.init_from, or what the run left in its output directory.
std::vector<NamedAdapter> Evaluation::chosen_adapters(const std::string& given) const {
  if (!given.empty()) return {{"default", given}};
  if (config_.adapter.init_from) return {{"default", *config_.adapter.init_from}};
  const Path own = config_.run.output_dir / "adapter";
  if (config_.adapter.method == "none" || !std::filesystem::exists(own)) return {};
  return adapters_of_run(config_, own);
}

train::EvalResult Evaluation::loss() {
  const auto amp = trainer_options(config_, device_, 0).amp_dtype;
  return train::evaluate(*model_, rows_, config_.train.micro_batch, device_, amp, pad_id_);
}

/// What the last answer of a row follows; ChatGLM's recipe for ADGEN cuts texts by its own rule.
Question Evaluation::question(int64_t row) const {
  const auto& text = rows_.text_pairs.at(static_cast<size_t>(row));
  Question question{.prompt = {.row = rows_.number(row), .ids = {}}, .text = text.prompt, .reference = text.response};
  if (config_.data.format == "adgen" && tokenizer_->glm_ids()) {
    const auto encoded =
        data::encode_glm_adgen_eval(text, *tokenizer_, config_.data.max_source_length, config_.data.max_target_length);
    question.prompt.ids = encoded.input_ids;
    while (!question.prompt.ids.empty() && question.prompt.ids.back() == pad_id_) question.prompt.ids.pop_back();
    question.reference = readable_text(*tokenizer_, encoded.reference_ids);
    return question;
  }
  question.prompt.ids = question_ids(rows_.example(row));
  return question;
}

std::vector<int64_t> Evaluation::row_numbers() const {
  std::vector<int64_t> numbers;
  for (int64_t row = 0; row < rows_.size(); ++row) numbers.push_back(rows_.number(row));
  return numbers;
}

std::vector<Question> Evaluation::questions() const {
  std::vector<Question> all;
  for (int64_t row = 0; row < rows_.size(); ++row) all.push_back(question(row));
  return all;
}

generate::GenerateOptions Evaluation::options() const {
  const auto& section = config_.generate;
  generate::GenerateOptions options;
  options.sampling = {section.temperature, section.top_k, section.top_p};
  options.beams.num_beams = section.num_beams;
  options.beams.length_penalty = section.length_penalty;
  options.repetition_penalty = section.repetition_penalty;
  options.max_new_tokens = config_.run.mode == "eval" ? config_.eval.max_new_tokens : section.max_new_tokens;
  options.stop_ids = model_->end_ids();
  options.seed = static_cast<uint64_t>(config_.run.seed);
  return options;
}

std::string Evaluation::identity() const {
  std::string adapters;
  for (const auto& [name, directory] : chosen_adapters_) {
    for (const auto& entry : std::filesystem::directory_iterator(directory)) {
      if (entry.is_regular_file()) adapters += file_digest(entry.path()) + " ";
    }
  }
  std::set<std::string> model;
  if (config_.model.path) {
    for (const auto& entry : std::filesystem::directory_iterator(*config_.model.path)) {
      if (!entry.is_regular_file()) continue;
      // Weights are too large to read for this; whoever writes them anew changes when they were written.
      model.insert(fmt::format("{} {} {}", entry.path().filename().string(), entry.file_size(),
                               entry.last_write_time().time_since_epoch().count()));
    }
  }
  RunConfig shown = config_;
  shown.run.output_dir = "/";
  shown.eval.metrics.clear();
  const OrderedJson json = {{"config", config::dump_run_config(shown)},
                            {"adapters", adapters},
                            {"model", model},
                            {"tokenizer", tokenizer_ == nullptr ? "" : tokenizer_->fingerprint()},
                            {"rows", file_digest(*config_.data.eval.path)}};
  return json.dump();
}

/// Rows per second and the time left, now and then.
class RowProgress {
 public:
  explicit RowProgress(int64_t rows) : rows_(rows) {}

  void count() {
    ++done_;
    if (since_line_.seconds() < kSecondsBetweenLines && done_ < rows_) return;
    since_line_.restart();
    const double speed = static_cast<double>(done_) / since_start_.seconds();
    log::info(fmt::format("{} of {} rows, {:.1f} rows/s, {:.0f} s left", done_, rows_, speed,
                          static_cast<double>(rows_ - done_) / speed));
  }

 private:
  static constexpr double kSecondsBetweenLines = 5;
  int64_t rows_, done_ = 0;
  Stopwatch since_start_, since_line_;
};

void Evaluation::predict(PredictionFile& file, ScoringThread* scores) {
  const auto all = questions();
  std::vector<generate::PromptRow> prompts;
  std::vector<const Question*> asked;
  for (const auto& one : all) {
    const auto there = file.there().find(one.prompt.row);
    if (there == file.there().end()) {
      prompts.push_back(one.prompt);
      asked.push_back(&one);
    } else if (scores != nullptr) {
      scores->add(one.prompt.row, there->second.prediction, there->second.reference);
    }
  }
  if (asked.size() < all.size())
    log::info(fmt::format("{} of {} rows are there from an earlier run", all.size() - asked.size(), all.size()));
  RowProgress progress(static_cast<int64_t>(asked.size()));
  generate::complete_all(*model_, prompts, options(), {.max_sequences = config_.generate.batch_size}, device_,
                         [&](int64_t index, const generate::Generation& generation) {
                           check_for_stop();
                           std::vector<int64_t> ids = generation.token_ids;
                           if (generation.finish_reason == "stop" && !ids.empty()) ids.pop_back();
                           const Question& question = *asked.at(static_cast<size_t>(index));
                           const Prediction prediction{question.prompt.row, question.text,
                                                       readable_text(*tokenizer_, std::move(ids)), question.reference};
                           file.add(prediction);
                           if (scores != nullptr) scores->add(prediction.row, prediction.prediction, prediction.reference);
                           progress.count();
                         });
}

Path require_place(const Path& file, bool overwrite) {
  require<ConfigError>(
      overwrite || !std::filesystem::exists(file),
      "[run.output_dir] existing output is never overwritten; {} exists; choose another place or pass --overwrite",
      file.string());
  make_directories(file.parent_path());
  return file;
}

eval::MetricSet make_metrics(const config::EvalSection& section) {
  const eval::MetricOptions options{.segmenter = eval::make_segmenter(section.segmenter, section.dictionary.value_or(Path()))};
  return {eval::MetricRegistry(), section.metrics, options};
}

/// eval.json in the output directory, and the same on the screen.
int write_result(const Path& output, const OrderedJson& result, bool print_json) {
  write_file_atomically(output, result.dump(2) + "\n");
  if (print_json) {
    fmt::print("{}\n", result.dump());
    return kDone;
  }
  for (const auto& [name, value] : result.items()) {
    fmt::print("{:<20}{}\n", name, value.is_number_float() ? fmt::format("{:.4f}", value.get<double>()) : value.dump());
  }
  return kDone;
}

/// Metrics of answers that `lora predict` or another tool wrote; no model is needed.
int score_predictions(const RunConfig& config, const Path& file, bool overwrite, bool print_json) {
  require<ConfigError>(!config.eval.metrics.empty(),
                       "[eval.metrics] --predictions needs metrics of texts; found none; name rouge or bleu4");
  const Path output = require_place(config.run.output_dir / "eval.json", overwrite);
  eval::MetricSet metrics = make_metrics(config.eval);
  formats::LineReader lines(file);
  int64_t rows = 0;
  while (const auto line = lines.next()) {
    if (line->empty()) continue;
    const auto [prediction, reference] = read_answer(*line, fmt::format("{}:{}", file.string(), lines.line_number()));
    metrics.add(prediction, reference);
    ++rows;
  }
  require<DataError>(rows > 0, "[eval] --predictions must hold a line of JSON per row; {} is empty", file.string());
  OrderedJson result = {{"rows", rows}};
  for (const auto& score : metrics.scores()) result[score.name] = score.value;
  return write_result(output, result, print_json);
}

constexpr const char *kPredictions = "predictions.jsonl", *kEvaluated = "eval_predictions.jsonl", *kEvaluation = "eval.json";

/// Where an evaluation puts its answers: those that lora predict left stay.
Path place_of_evaluated(const Path& output_dir, bool overwrite) {
  const bool is_free = overwrite || !std::filesystem::exists(output_dir / kPredictions);
  return output_dir / (is_free ? kPredictions : kEvaluated);
}

/// Gives the answers of an evaluation their other name, so that lora predict has a place for its own.
void make_place_for_predictions(const Path& output_dir) {
  const Path file = output_dir / kEvaluation;
  if (!std::filesystem::exists(output_dir / kPredictions) || !std::filesystem::exists(file)) return;
  OrderedJson result = formats::parse_ordered_json(read_file(file), file.string());
  if (!result.is_object() || result.value("answers", "") != kPredictions) return;
  result["answers"] = kEvaluated;
  write_file_atomically(file, result.dump(2) + "\n");
  std::filesystem::rename(output_dir / kPredictions, output_dir / kEvaluated);
  log::info(fmt::format("the answers of the evaluation are in {} now", (output_dir / kEvaluated).string()));
}

int run_eval(Evaluation& evaluation, bool overwrite, bool print_json) {
  const RunConfig& config = evaluation.config();
  const Path output = require_place(config.run.output_dir / "eval.json", overwrite);
  const bool has_metrics = has_answers(config) && !config.eval.metrics.empty();
  const Path answers = place_of_evaluated(config.run.output_dir, overwrite);
  const auto loss = evaluation.loss();
  OrderedJson result = {{"loss", loss.loss}, {"perplexity", std::exp(loss.loss)}, {"rows", loss.rows}, {"targets", loss.targets}};
  if (!has_metrics) return write_result(output, result, print_json);
  ScoringThread scores(make_metrics(config.eval), evaluation.row_numbers());
  PredictionFile predictions(answers, evaluation.identity());
  const Stopwatch watch;
  evaluation.predict(predictions, &scores);
  for (const auto& score : scores.finish()) result[score.name] = score.value;
  result["generation_seconds"] = watch.seconds();
  result["answers"] = answers.filename().string();
  write_result(output, result, print_json);
  predictions.finish();
  return kDone;
}

int run_predict(Evaluation& evaluation, bool overwrite) {
  const RunConfig& config = evaluation.config();
  if (!overwrite) make_place_for_predictions(config.run.output_dir);
  const Path output = require_place(config.run.output_dir / kPredictions, overwrite);
  PredictionFile predictions(output, evaluation.identity());
  evaluation.predict(predictions, nullptr);
  predictions.finish();
  fmt::print("wrote {} predictions: {}\n", predictions.all().size(), output.string());
  return kDone;
}

int EvaluationCommand::run() const {
  auto all_overrides = overrides;
  if (!device.empty()) all_overrides.push_back("run.device=" + device);
  auto config = config::load_run_config(run_file, all_overrides, std::filesystem::current_path(), name);
  require<ConfigError>(name == "eval" || has_answers(config), "[data.format] lora predict answers rows of {}; found {}",
                       fmt::join(data::answering_format_names(), ", "), config.data.format);
  if (!predictions.empty()) return score_predictions(config, predictions, overwrite, json);
  catch_stop_signals();
  seed_generators(static_cast<uint64_t>(config.run.seed));
  Evaluation evaluation(std::move(config), adapter);
  return name == "eval" ? run_eval(evaluation, overwrite, json) : run_predict(evaluation, overwrite);
}

void add_evaluation_command(CLI::App& program, Action& action, const std::string& name, const std::string& what) {
  auto* command = program.add_subcommand(name, what);
  command->footer(
      fmt::format("The adapter is --adapter, else adapter.init_from, else what a run left in <output_dir>/adapter.\n"
                  "Example: lora {} -c run.yaml --adapter out/adapter",
                  name));
  auto state = std::make_shared<EvaluationCommand>();
  state->name = name;
  command->add_option("-c,--config", state->run_file, "Run file (YAML)")->required();
  command->add_option("--set", state->overrides, "section.key=value, over the run file")
      ->take_all()
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_option("--adapter", state->adapter, "Adapter directory (PEFT layout)");
  command->add_option("--device", state->device, "auto, cpu, cuda or cuda:N, over run.device");
  command->add_flag("--overwrite", state->overwrite, "Replace an existing result");
  if (name == "eval") {
    command->add_option("--predictions", state->predictions,
                        "Score the answers of this file (JSON lines of lora predict) instead of a model's");
    command->add_flag("--json", state->json, "Print the result as JSON");
  }
  add_log_options(*command);
  command->callback([state, &action] { action = [state] { return state->run(); }; });
}

}  // namespace

void add_evaluation_commands(CLI::App& program, Action& action) {
  add_evaluation_command(program, action, "eval", "Loss, perplexity and, of generated answers, ROUGE and BLEU on held-out rows");
  add_evaluation_command(program, action, "predict", "Generates an answer for every row of a data file");
}

}  // namespace lora::cli
