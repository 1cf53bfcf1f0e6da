// lora train and lora finetune.
#include "cli/command.h"
#include "cli/options.h"
#include "cli/signals.h"
#include "cli/staged_run.h"
#include "cli/training_run.h"
#include "core/check.h"
#include "lora/ops/device.h"

namespace lora::cli {
namespace {

struct TrainingCommand {
  std::string name;  ///< train or finetune
  RunFileOptions run_file;
  std::vector<std::string> allowed_changes;
  bool overwrite = false;

  int run() const;
};

int TrainingCommand::run() const {
  const auto staged = config::load_staged_config(run_file.file, run_file.all_overrides(), std::filesystem::current_path(), name);
  for (const auto& [stage, config] : staged.stages) {
    require<ConfigError>((config.adapter.method == "none") == (name == "train"),
                         "[adapter.method] lora finetune trains an adapter and lora train none; found {} with lora {}; use the "
                         "other command",
                         config.adapter.method, name);
  }
  catch_stop_signals();
  parse_device(staged.common.run.device);
  const auto run_one = [](const config::RunConfig& config, const RunStart& start) { return TrainingRun(config, start).run(); };
  if (staged.is_staged()) return run_stages(staged, overwrite, allowed_changes, run_one);
  return run_one(staged.common, decide_run_start(staged.common, overwrite, allowed_changes));
}

void add_training_command(CLI::App& program, Action& action, const std::string& name, const std::string& what) {
  auto* command = program.add_subcommand(name, what);
  command->footer(fmt::format("Example: lora {} -c run.yaml --set train.max_steps=100", name));
  auto state = std::make_shared<TrainingCommand>();
  state->name = name;
  state->run_file.add_to(*command, /*with_device=*/true);
  command->add_option("--allow-changed", state->allowed_changes, "A key that may differ on resume")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_flag("--overwrite", state->overwrite, "Remove what an earlier run left in output_dir, then start anew");
  add_log_options(*command);
  command->callback([state, &action] { action = [state] { return state->run(); }; });
}

}  // namespace

void add_training_commands(CLI::App& program, Action& action) {
  add_training_command(program, action, "train", "Trains all parameters, from given or fresh weights");
  add_training_command(program, action, "finetune", "Trains an adapter on a frozen base");
}

}  // namespace lora::cli
