#include <cmath>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/row_reader.h"
#include "core/check.h"
#include "formats/json.h"
#include "lora/core/file.h"
#include "lora/core/log.h"
#include "lora/formats/jsonl.h"
#include "lora/generate/score.h"

namespace lora::cli {
namespace {

using formats::Json;

struct ScoreCommand {
  ModelOptions model;
  std::string input, output;
  int64_t batch_size = 8;
  bool overwrite = false;

  int run() const;
};

/// Rows scored together before their results are written: bounds the memory that a long file needs.
constexpr size_t kRowsAtOnce = 256;

std::string to_line(const generate::RowScore& score) {
  const Json line = {
      {"logprobs", score.logprobs}, {"sum_logprob", score.sum_logprob}, {"num_targets", score.num_targets}, {"loss", score.loss}};
  return line.dump() + "\n";
}

int ScoreCommand::run() const {
  require<ConfigError>(batch_size >= 1, "[--batch-size] a batch must have at least one row; found {}", batch_size);
  require_free_output(output, overwrite);
  formats::LineReader lines(input);
  const LoadedModel loaded = load_model(model);
  const RowReader reader(loaded, input);

  std::string results;
  std::vector<data::Example> rows;
  int64_t scored = 0, not_finite = 0;
  const auto score_rows = [&] {
    for (const auto& score : generate::score(*loaded.model, rows, batch_size, loaded.device)) {
      ++scored;
      if (!std::isfinite(score.sum_logprob) && ++not_finite == 1)
        log::warn(
            fmt::format("[{}] log-probabilities should be finite; those of row {} are not, and stand as null", input, scored));
      results += to_line(score);
    }
    rows.clear();
  };
  while (const auto line = lines.next()) {
    rows.push_back(reader.read(*line, lines.line_number()));
    if (rows.size() == kRowsAtOnce) score_rows();
  }
  score_rows();
  write_file_atomically(output, results);
  if (not_finite > 1)
    log::warn(fmt::format("[{}] {} of {} rows have log-probabilities that are not finite", input, not_finite, scored));
  log::info(fmt::format("scored {} rows into {}", lines.line_number(), output));
  return kDone;
}

}  // namespace

void add_score_command(CLI::App& program, Action& action) {
  auto* command = program.add_subcommand("score", "Log-probabilities of given rows");
  command->footer(
      "Example: lora score --model base --adapter out/adapter --input rows.jsonl --output scores.jsonl\n"
      "A row is {\"input_ids\": [...]} (with \"labels\" or not), {\"text\": ...} or {\"prompt\": ..., "
      "\"completion\": ...}.");
  auto state = std::make_shared<ScoreCommand>();
  state->model.add_to(*command);
  command->add_option("--input", state->input, "JSON lines to score")->required();
  command->add_option("--output", state->output, "Where the results go, one line per row")->required();
  command->add_option("--batch-size", state->batch_size, "Rows computed together")->capture_default_str();
  command->add_flag("--overwrite", state->overwrite, "Replace an existing output");
  add_log_options(*command);
  command->callback([state, &action] { action = [state] { return state->run(); }; });
}

}  // namespace lora::cli
