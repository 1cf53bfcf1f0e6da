#include "lora/cli/program.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <new>

#include "cli/command.h"
#include "cli/signals.h"
#include "lora/config/known_names.h"
#include "lora/core/error.h"
#include "lora/core/log.h"
#include "lora/core/text.h"
#include "lora/data/format_registry.h"
#include "lora/eval/metric_registry.h"
#include "lora/models/glm.h"
#include "lora/models/llama.h"
#include "lora/models/registry.h"
#include "lora/ops/device.h"
#include "lora/ops/shared_cores.h"
#include "lora/train/callback_registry.h"

namespace lora::cli {
namespace {

constexpr const char* kVersion = "lora " LORA_VERSION;

/// One line, unless all is to be said. Messages hold names and texts from outside, which must not drive the terminal.
std::string printable(std::string_view message) {
  std::string text = escape_control(to_utf8(message));
  if (log::level() != log::Level::kDebug) std::ranges::replace(text, '\n', ' ');
  return text;
}

int report(std::string_view message, int code) {
  fmt::print(stderr, "error: {}\n", printable(message));
  return code;
}

/// The first line of what LibTorch has to say; the rest is a stack trace.
std::string first_line(const c10::Error& error, bool verbose) {
  if (verbose) return error.what();
  const std::string text = error.what_without_backtrace();
  return text.substr(0, text.find('\n'));
}

/// Runs the chosen command and turns every exception into one line and an exit code.
int run(const Action& action) {
  const bool verbose = log::level() == log::Level::kDebug;
  try {
    return action();
  } catch (const Stopped& stopped) {
    return exit_code_of_signal(stopped.signal);
  } catch (const ConfigError& error) {
    return report(error.what(), kUsage);
  } catch (const Error& error) {
    return report(error.what(), kFailed);
  } catch (const c10::OutOfMemoryError& error) {
    return report(fmt::format("[memory] the device must have room for the run; {}; use smaller batches or a smaller "
                              "dtype",
                              first_line(error, verbose)),
                  kFailed);
  } catch (const c10::Error& error) {
    return report(fmt::format("[torch] {}", first_line(error, verbose)), kFailed);
  } catch (const std::bad_alloc&) {
    return report(
        "[memory] the machine must have room for the run; an allocation failed; use smaller batches or a "
        "smaller dtype",
        kFailed);
  } catch (const std::exception& error) {
    return report(fmt::format("[lora] {}", error.what()), kFailed);
  }
}

/// The architectures of this library, besides those that a program registered before; the run file may name them all, as it may
/// registered formats, metrics and callbacks.
void register_names() {
  for (auto&& known : {llama::architecture(), llama::baichuan_architecture(), glm::architecture()}) {
    const auto names = models::architecture_names();
    if (std::ranges::find(names, known.name) == names.end()) models::register_model(known);
  }
  config::known_names().architectures = models::architecture_names();
  config::known_names().loaded_fields.clear();
  for (const auto& name : models::architecture_names()) {
    std::ranges::copy(models::architecture(name).loaded_fields, std::back_inserter(config::known_names().loaded_fields));
  }
  config::known_names().formats = data::data_format_names();
  config::known_names().metrics = eval::MetricRegistry().names();
  config::known_names().callbacks = train::callback_names();
}

}  // namespace

int run_program(int argc, char** argv) {
  prepare_memory();
  const ops::SharedCores shared_cores;
  CLI::App program{"Fine-tunes large language models with LoRA and its relatives."};
  program.name("lora");
  program.set_version_flag("--version", kVersion);
  program.require_subcommand(1);
  program.footer("Example: lora finetune -c run.yaml\nEvery command has --help with an example.");

  register_names();
  Action action;
  add_training_commands(program, action);
  add_evaluation_commands(program, action);
  add_generate_command(program, action);
  add_score_command(program, action);
  add_merge_command(program, action);
  add_export_command(program, action);
  add_convert_command(program, action);
  add_inspect_command(program, action);
  add_prepare_command(program, action);
  add_plan_command(program, action);
  add_bench_command(program, action);
  add_completion_command(program, action);

  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return program.exit(error);  // --help, --version
    return report(fmt::format("[command line] {}; see lora --help", error.what()), kUsage);
  }
  return run(action);
}

}  // namespace lora::cli
