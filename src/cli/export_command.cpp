#include <fmt/format.h>

#include <algorithm>

#include "cli/command.h"
#include "cli/options.h"
#include "core/check.h"
#include "io/weight_files.h"
#include "lora/adapters/adapter_io.h"
#include "lora/adapters/combine.h"
#include "lora/core/file.h"
#include "lora/core/text.h"
#include "lora/models/llama.h"
#include "lora/models/llama/gguf.h"

namespace lora::cli {
namespace {

struct ExportCommand {
  std::string model, to, output, dtype;
  std::vector<std::string> adapters;
  std::vector<double> weights;
  CombineOptions combine;
  bool overwrite = false;

  void check() const;
  DType number_type() const;
  bool combines() const { return !weights.empty(); }
  io::AdapterFiles checked_against_model() const;
  int run() const;
};

void ExportCommand::check() const {
  require<ConfigError>(to == "gguf" || to == "peft", "[--to] the format must be gguf or peft; found {:?}", to);
  require<ConfigError>(dtype.empty() || to == "gguf", "[--dtype] PEFT's files hold fp32; found {}; leave it out, or write gguf",
                       dtype);
  require<ConfigError>(adapters.size() == 1 || weights.size() == adapters.size(),
                       "[--weights] several adapters need one weight each; found {} adapters and {} weights; give for example "
                       "--weights 0.5,0.5",
                       adapters.size(), weights.size());
  require_free_output(output, overwrite);
}

/// fp32, or what --dtype says in our words or GGUF's.
DType ExportCommand::number_type() const {
  if (dtype.empty() || dtype == "f32") return DType::kF32;
  return parse_float_dtype(dtype == "f16" ? "fp16" : dtype, "--dtype");
}

/// Loaded onto the model, whose layers stay in their files, or onto its shapes where there is no more than config.json: every
/// tensor finds its place, every place its tensor.
io::AdapterFiles ExportCommand::checked_against_model() const {
  const bool has_weights = io::has_weight_files(model);
  models::LoadOptions options{.device = has_weights ? at::kCPU : at::kMeta};
  if (has_weights) options.offload = nn::Offload::kDisk;
  const auto loaded = models::architecture_of(model).load(model, options);
  std::vector<std::string> names;
  for (const auto& adapter : adapters) {
    names.push_back(fmt::format("adapter_{}", names.size()));
    const AdapterSet set = load_adapter(*loaded, adapter, names.back());
    if (!combines()) return adapter_to_files(set);
  }
  return adapter_to_files(add_weighted_adapter(*loaded, names, weights, "combined", combine));
}

int ExportCommand::run() const {
  check();
  const DType type = number_type();
  if (to == "peft") {
    const io::AdapterFiles files = checked_against_model();
    io::write_adapter_files(output, files);
    fmt::print("wrote {} tensors for PEFT into {}\n", files.tensors.size(), output);
    return kDone;
  }
  const llama::LlamaConfig config = llama::read_llama_config(model);
  const auto header = [&] {
    const io::AdapterFiles files = checked_against_model();
    if (const Path parent = Path(output).parent_path(); !parent.empty()) make_directories(parent);
    try {
      return llama::save_gguf_lora(output, config, files, type);
    } catch (const ConfigError& error) {
      throw FormatError(error.what());  // it is the adapter that GGUF cannot express
    }
  }();
  const auto& last = header.tensors.back();
  fmt::print("wrote {} tensors ({}, {}) for llama.cpp into {}\n", header.tensors.size(), short_name(type),
             human_bytes(header.data_start + last.offset + last.bytes), output);
  return kDone;
}

void add_combination_options(CLI::App& command, ExportCommand& state) {
  auto& combine = state.combine;
  const std::string group = "Several adapters as one";
  command.add_option("--weights", state.weights, "One weight per adapter, for example 0.7,-0.4")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->group(group);
  command.add_option("--combination-type", combine.type, fmt::format("{}", fmt::join(combination_types(), ", ")))
      ->capture_default_str()
      ->group(group);
  command.add_option("--svd-rank", combine.svd_rank, "Rank of the svd types (default: the largest)")->group(group);
  command.add_option("--svd-clamp", combine.svd_clamp, "Quantile beyond which the svd types cut numbers")->group(group);
  command.add_option("--density", combine.density, "Share of numbers that the pruning types keep")->group(group);
  command.add_option("--majority-sign-method", combine.majority_sign_method, "total or frequency, for the ties types")
      ->capture_default_str()
      ->group(group);
  command.add_option("--seed", combine.seed, "Of the random masks of the dare types")->capture_default_str()->group(group);
}

}  // namespace

void add_export_command(CLI::App& program, Action& action) {
  auto* command = program.add_subcommand("export", "Writes adapters for other programs");
  command->footer(
      "Example: lora export --model base --adapter out/adapter --to gguf --output adapter.gguf\n"
      "Several adapters as one: --adapter a --adapter b --weights 0.7,-0.4 --combination-type cat");
  auto state = std::make_shared<ExportCommand>();
  state->combine.type = "cat";
  command->add_option("--model", state->model, "Model directory of the base")->required();
  command->add_option("--adapter", state->adapters, "Adapter directory (PEFT layout); may be given again")
      ->required()
      ->allow_extra_args(false);
  command->add_option("--to", state->to, "gguf: one file for llama.cpp; peft: a directory")->required();
  command->add_option("--output", state->output, "File or directory to write")->required();
  command->add_option("--dtype", state->dtype, "f32, f16 or bf16 of the numbers in a GGUF file (default: f32)");
  command->add_flag("--overwrite", state->overwrite, "Replace an existing output");
  add_combination_options(*command, *state);
  add_log_options(*command);
  command->callback([state, &action] { action = [state] { return state->run(); }; });
}

}  // namespace lora::cli
