// lora eval and lora predict: what a trained model makes of held-out rows.
#include <fmt/format.h>

#include <cmath>
#include <optional>

#include "cli/command.h"
#include "cli/evaluation.h"
#include "cli/run_directory.h"
#include "cli/signals.h"
#include "core/check.h"
#include "formats/json.h"
#include "lora/core/file.h"
#include "lora/core/log.h"
#include "lora/core/random.h"
#include "lora/core/stopwatch.h"
#include "lora/eval/metric_set.h"
#include "lora/formats/jsonl.h"
#include "lora/ops/device.h"

namespace lora::cli {
namespace {

using config::RunConfig;
using formats::OrderedJson;

struct EvaluationCommand {
  std::string name;  ///< eval or predict
  RunFileOptions run_file;
  std::string adapter;
  std::string predictions;  ///< of eval: answers that are there already
  bool overwrite = false, json = false;

  int run() const;
};

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

/// eval.json of an evaluation whose answers are in predictions.jsonl; nothing: what is there, if anything, is of lora predict.
std::optional<OrderedJson> evaluation_in_predictions(const Path& output_dir) {
  const Path file = output_dir / kEvaluation;
  if (!std::filesystem::exists(output_dir / kPredictions) || !std::filesystem::exists(file)) return std::nullopt;
  OrderedJson result = formats::parse_ordered_json(read_file(file), file.string());
  const bool is_its_own = result.is_object() && result.contains("answers") && result["answers"] == kPredictions;
  return is_its_own ? std::optional(std::move(result)) : std::nullopt;
}

/// Metrics of answers that `lora predict` or another tool wrote; no model is needed.
int score_predictions(const RunConfig& config, const Path& file, bool overwrite, bool print_json) {
  require<ConfigError>(!config.eval.metrics.empty(),
                       "[eval.metrics] --predictions needs metrics of texts; found none; name rouge or bleu4");
  const Path output = require_place(config.run.output_dir / kEvaluation, overwrite);
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
  if (evaluation_in_predictions(config.run.output_dir)) result["answers"] = kPredictions;  // they are still an evaluation's
  return write_result(output, result, print_json);
}

/// Where an evaluation puts its answers: those of lora predict stay, all of them or what a stopped run left.
Path place_of_evaluated(const Path& output_dir, const std::string& identity) {
  const Path file = output_dir / kPredictions;
  const bool is_free = !std::filesystem::exists(file) || evaluation_in_predictions(output_dir);
  return is_free && !has_answers_of_another(file, identity) ? file : output_dir / kEvaluatedAnswers;
}

/// Gives the answers of an evaluation their other name, so that lora predict has a place for its own.
void make_place_for_predictions(const Path& output_dir) {
  auto result = evaluation_in_predictions(output_dir);
  if (!result) return;
  std::filesystem::rename(output_dir / kPredictions, output_dir / kEvaluatedAnswers);
  (*result)["answers"] = kEvaluatedAnswers;
  write_file_atomically(output_dir / kEvaluation, result->dump(2) + "\n");
  log::info(fmt::format("the answers of the evaluation are in {} now", (output_dir / kEvaluatedAnswers).string()));
}

/// Answers that a stopped evaluation may have left, under the name that the next one looks for them then.
void leave_to_evaluation(const Path& output_dir) {
  const Path place = part_of(output_dir / kEvaluatedAnswers);
  if (!std::filesystem::exists(place)) std::filesystem::rename(part_of(output_dir / kPredictions), place);
}

int run_eval(Evaluation& evaluation, bool overwrite, bool print_json) {
  const RunConfig& config = evaluation.config();
  const Path output = require_place(config.run.output_dir / kEvaluation, overwrite);
  const bool has_metrics = evaluation.has_texts() && !config.eval.metrics.empty();
  const bool replaces_answers = evaluation_in_predictions(config.run.output_dir).has_value();
  const auto loss = evaluation.loss();
  OrderedJson result = {{"loss", loss.loss}, {"perplexity", std::exp(loss.loss)}, {"rows", loss.rows}, {"targets", loss.targets}};
  if (!has_metrics) {
    if (replaces_answers) std::filesystem::remove(config.run.output_dir / kPredictions);  // of the evaluation that was there
    return write_result(output, result, print_json);
  }
  ScoringThread scores(make_metrics(config.eval), evaluation.row_numbers());
  const std::string identity = evaluation.identity();
  const Path answers = place_of_evaluated(config.run.output_dir, identity);
  PredictionFile predictions(answers, identity);
  const Stopwatch watch;
  evaluation.predict(predictions, &scores);
  for (const auto& score : scores.finish()) result[score.name] = score.value;
  result["generation_seconds"] = watch.seconds();
  result["answers"] = answers.filename().string();
  predictions.finish();
  return write_result(output, result, print_json);
}

int run_predict(Evaluation& evaluation, bool overwrite) {
  const RunConfig& config = evaluation.config();
  evaluation.require_questions();
  make_place_for_predictions(config.run.output_dir);
  const Path output = require_place(config.run.output_dir / kPredictions, overwrite);
  const std::string identity = evaluation.identity();
  if (has_answers_of_another(output, identity)) leave_to_evaluation(config.run.output_dir);
  PredictionFile predictions(output, identity);
  evaluation.predict(predictions, nullptr);
  predictions.finish();
  fmt::print("wrote {} predictions: {}\n", predictions.all().size(), output.string());
  return kDone;
}

int EvaluationCommand::run() const {
  auto config = run_file.load(name);
  if (name == "predict" && config.data.format != "records") require_answerable(config.data.format, config.data.format);
  if (!predictions.empty()) return score_predictions(config, predictions, overwrite, json);
  catch_stop_signals();
  seed_generators(static_cast<uint64_t>(config.run.seed));
  Evaluation evaluation(std::move(config), adapter);
  return name == "eval" ? run_eval(evaluation, overwrite, json) : run_predict(evaluation, overwrite);
}

void add_evaluation_command(CLI::App& program, Action& action, const std::string& name, const std::string& what) {
  auto* command = program.add_subcommand(name, what);
  command->footer(
      fmt::format("Evaluated is --adapter, else what a run of this file left in output_dir, else adapter.init_from.\n"
                  "Example: lora {} -c run.yaml --adapter out/adapter",
                  name));
  auto state = std::make_shared<EvaluationCommand>();
  state->name = name;
  state->run_file.add_to(*command, /*with_device=*/true);
  command->add_option("--adapter", state->adapter, "Adapter directory (PEFT layout)");
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
