// What the sub-commands share: how each adds itself to the program, and the options that all have.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

namespace lora::cli {

/// The chosen sub-command's work, run after the whole command line was read. Returns the exit code.
using Action = std::function<int()>;

/// Each adds one sub-command (or two, train and finetune) with its help, options and example; when it is chosen
/// `action` is set.
void add_training_commands(CLI::App& program, Action& action);
void add_evaluation_commands(CLI::App& program, Action& action);
void add_generate_command(CLI::App& program, Action& action);
void add_score_command(CLI::App& program, Action& action);
void add_merge_command(CLI::App& program, Action& action);
void add_export_command(CLI::App& program, Action& action);
void add_convert_command(CLI::App& program, Action& action);
void add_inspect_command(CLI::App& program, Action& action);
void add_prepare_command(CLI::App& program, Action& action);
void add_plan_command(CLI::App& program, Action& action);
void add_bench_command(CLI::App& program, Action& action);
void add_completion_command(CLI::App& program, Action& action);

/// Exit codes of the documentation.
constexpr int kDone = 0, kFailed = 1, kUsage = 2;

}  // namespace lora::cli
