#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/run_setup.h"
#include "cli/signals.h"
#include "core/check.h"
#include "lora/core/file.h"
#include "lora/core/log.h"
#include "lora/core/stopwatch.h"
#include "lora/core/text.h"
#include "lora/data/format_registry.h"
#include "lora/data/overlap.h"
#include "lora/data/records.h"

namespace lora::cli {
namespace {

using config::RunConfig;

struct PrepareCommand {
  RunFileOptions run_file;
  std::string shard_size = "1GiB";
  bool overwrite = false;

  int run() const;
};

/// What training and evaluation data are prepared with.
struct Preparation {
  RunConfig config;
  Path directory;  ///< of the sets
  std::shared_ptr<const data::Tokenizer> tokenizer;
  data::RecordOptions options;
};

Preparation make_preparation(const PrepareCommand& command) {
  Preparation result;
  result.config = command.run_file.load("");
  const RunConfig& config = result.config;
  require<ConfigError>(config.data.format != "records",
                       "[data.format] lora prepare makes records out of another format; found records; name the "
                       "format of data.train.path");
  result.directory = config.run.output_dir / "records";
  result.tokenizer = make_tokenizer(config);
  const auto model = make_model(config, at::kMeta);
  if (data::needs_tokenizer(config.data.format)) require_same_tokens(*model, *result.tokenizer);
  result.options.rows = dataset_options(config, *model);
  result.options.shard_bytes = parse_bytes(command.shard_size, "--shard-size");
  require<ConfigError>(result.options.shard_bytes > 0, "[--shard-size] must be at least a byte; found {}", command.shard_size);
  result.options.between_batches = check_for_stop;
  return result;
}

void prepare_set(const Preparation& preparation, const Path& source, const Path& directory, const data::RecordOptions& options) {
  const Stopwatch watch;
  const auto written = data::write_records(source, directory, options, preparation.tokenizer.get());
  const auto& header = written.header;
  for (const auto& reason : written.bad_row_reasons) log::warn("left out: " + reason);
  if (written.was_there) {
    fmt::print("{} is finished: {} rows\n", directory.string(), with_thousands(header.rows));
    return;
  }
  if (written.rows_from_before > 0)
    log::info(fmt::format("{} rows were there already", with_thousands(written.rows_from_before)));
  log::info(fmt::format("{}: {} rows, {} truncated, {} bad; {:.0f} rows/s", source.filename().string(), header.source.rows,
                        header.source.truncated, header.source.bad_rows,
                        static_cast<double>(header.rows - written.rows_from_before) / watch.seconds()));
  fmt::print("wrote {} rows, {} tokens in {} shard{}: {}\n", with_thousands(header.rows), with_thousands(header.tokens),
             header.shards.size(), header.shards.size() == 1 ? "" : "s", directory.string());
}

/// Numbers of the evaluation rows that data.on_overlap leaves out. Says what overlaps.
std::vector<int64_t> rows_to_leave_out(const Preparation& preparation, const Path& source, const Path& training_records) {
  const auto* tokenizer = preparation.tokenizer.get();
  const auto training = data::open_records(training_records, preparation.options.rows, tokenizer);
  const auto evaluation = data::load_dataset(source, preparation.options.rows, tokenizer);
  const auto overlap = data::find_overlap(training, evaluation, tokenizer);
  log::info(fmt::format("{} of {} evaluation rows have {} characters of their answer in common with a training row",
                        overlap.sharing.size(), evaluation.size(), data::kOverlapCharacters));
  std::vector<int64_t> numbers;
  for (const int64_t row : overlap_to_drop(preparation.config, overlap.equal, evaluation.size()))
    numbers.push_back(evaluation.number(row));
  return numbers;
}

int PrepareCommand::run() const {
  const Preparation preparation = make_preparation(*this);
  const RunConfig& config = preparation.config;
  if (config.run.threads > 0) at::set_num_threads(static_cast<int>(config.run.threads));
  catch_stop_signals();
  if (overwrite) {
    for (const auto& source : {config.data.train.path, config.data.eval.path}) {
      if (source) file_digest(*source);  // what is there is not given up for a file that is not
    }
    std::filesystem::remove_all(preparation.directory);
  }
  const Path training_records = preparation.directory / "train";
  prepare_set(preparation, *config.data.train.path, training_records, preparation.options);
  if (!config.data.eval.path) return kDone;
  auto options = preparation.options;
  options.leave_out = rows_to_leave_out(preparation, *config.data.eval.path, training_records);
  prepare_set(preparation, *config.data.eval.path, preparation.directory / "eval", options);
  return kDone;
}

}  // namespace

void add_prepare_command(CLI::App& program, Action& action) {
  auto* command = program.add_subcommand("prepare", "Tokenises a data set into record files with an index");
  command->footer(
      "Example: lora prepare -c run.yaml\nTrain from them with data.format=records and "
      "data.train.path=OUT/records/train.");
  auto state = std::make_shared<PrepareCommand>();
  state->run_file.add_to(*command, /*with_device=*/false);
  command->add_option("--shard-size", state->shard_size, "Most bytes of a data file, such as 512MiB")->capture_default_str();
  command->add_flag("--overwrite", state->overwrite, "Remove the records that are there, then write anew");
  add_log_options(*command);
  command->callback([state, &action] { action = [state] { return state->run(); }; });
}

}  // namespace lora::cli
