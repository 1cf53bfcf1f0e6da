// Options that several sub-commands share.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lora/adapters/adapter_sets.h"
#include "lora/config/run_config.h"
#include "lora/core/path.h"
#include "lora/data/tokenizer.h"
#include "lora/generate/generate.h"
#include "lora/models/registry.h"

namespace lora::cli {

/// -q and -v on a sub-command; they take effect while the command line is read.
void add_log_options(CLI::App& command);

/// -c, --set and, where it means something, --device: a run file and what the command line says over it.
struct RunFileOptions {
  std::string file, device;
  std::vector<std::string> overrides;

  void add_to(CLI::App& command, bool with_device);
  /// The overrides, the device among them.
  std::vector<std::string> all_overrides() const;
  /// `mode`: of the sub-command, see config::load_run_config.
  config::RunConfig load(const std::string& mode) const;
};

/// --model, --adapter, --dtype, --device: a model to compute with.
struct ModelOptions {
  std::string model, dtype, device = "auto";
  std::vector<std::string> adapters;

  void add_to(CLI::App& command);
};

/// A saved adapter, and the name that it gets in the model.
struct NamedAdapter {
  std::string name;
  Path directory;
};
/// Attaches saved adapters, of which several are active together.
AdapterSets load_adapters(nn::CausalLMImpl& model, const std::vector<NamedAdapter>& adapters);
/// What a run saves in `directory`: its first adapter's files, and a folder of its name for each other.
std::vector<NamedAdapter> adapters_of_run(const config::RunConfig& config, const Path& directory);

/// A model in evaluation mode, its adapters attached and active, and its tokenizer when there is one.
struct LoadedModel {
  const models::Architecture* architecture = nullptr;
  std::shared_ptr<nn::CausalLMImpl> model;
  AdapterSets adapters;
  std::shared_ptr<const data::Tokenizer> tokenizer;
  at::Device device = at::kCPU;
};
LoadedModel load_model(const ModelOptions& options);

/// FormatError where config.json and the tokenizer of a ChatGLM give its special tokens different ids: rows would be taught other
/// ends than generation stops at.
void require_same_tokens(nn::CausalLMImpl& model, const data::Tokenizer& tokenizer);

/// The tokenizer, or IoError saying that `what` needs one.
const data::Tokenizer& require_tokenizer(const LoadedModel& loaded, std::string_view what);

/// Text of generated ids, in valid UTF-8. Ids beyond the tokenizer's pieces give nothing: a model's vocabulary may be
/// padded, and an untrained model chooses such ids.
std::string readable_text(const data::Tokenizer& tokenizer, std::vector<int64_t> ids);

/// The same of a generation, without the end token that it stopped at.
std::string generated_text(const data::Tokenizer& tokenizer, const generate::Generation& generation);

/// Throws ConfigError when `output` exists (a file, or a directory with something in it) and `overwrite` is false.
void require_free_output(const Path& output, bool overwrite);

}  // namespace lora::cli
