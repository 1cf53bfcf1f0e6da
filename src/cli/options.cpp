#include "cli/options.h"

#include <algorithm>

#include "core/check.h"
#include "lora/adapters/adapter_io.h"
#include "lora/core/dtype.h"
#include "lora/core/file.h"
#include "lora/core/log.h"
#include "lora/core/text.h"
#include "lora/data/glm_tokenizer.h"
#include "lora/io/dtype.h"
#include "lora/ops/device.h"

namespace lora::cli {

void add_log_options(CLI::App& command) {
  command.add_flag_callback(
      "-q,--quiet", [] { log::set_level(log::Level::kError); }, "Errors only");
  command.add_flag_callback(
      "-v,--verbose", [] { log::set_level(log::Level::kDebug); }, "Say more");
}

void RunFileOptions::add_to(CLI::App& command, bool with_device) {
  command.add_option("-c,--config", file, "Run file (YAML)")->required();
  command.add_option("--set", overrides, "section.key=value, over the run file")
      ->take_all()
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  if (with_device) command.add_option("--device", device, "auto, cpu, cuda or cuda:N, over run.device");
}

std::vector<std::string> RunFileOptions::all_overrides() const {
  std::vector<std::string> all = overrides;
  if (!device.empty()) all.push_back("run.device=" + device);
  return all;
}

config::RunConfig RunFileOptions::load(const std::string& mode) const {
  return config::load_run_config(file, all_overrides(), std::filesystem::current_path(), mode);
}

void ModelOptions::add_to(CLI::App& command) {
  command.add_option("--model", model, "Model directory (Hugging Face layout)")->required();
  command.add_option("--adapter", adapters, "Adapter directory (PEFT layout); given again, one that works together with it")
      ->take_all()
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command.add_option("--dtype", dtype, "fp32, bf16 or fp16 (default: the model's own)");
  command.add_option("--device", device, "auto, cpu, cuda or cuda:N")->capture_default_str();
}

namespace {

/// The first is "default", the others have numbers: names are for those that a program chooses from.
std::vector<NamedAdapter> named(const std::vector<std::string>& directories) {
  std::vector<NamedAdapter> adapters;
  for (const auto& directory : directories) {
    adapters.push_back({adapters.empty() ? "default" : fmt::format("adapter_{}", adapters.size() + 1), directory});
  }
  return adapters;
}

}  // namespace

AdapterSets load_adapters(nn::CausalLMImpl& model, const std::vector<NamedAdapter>& adapters) {
  std::vector<AdapterSet> sets;
  for (const auto& [name, directory] : adapters) sets.push_back(load_adapter(model, directory, name));
  if (sets.size() > 1) activate_together(model, sets);
  return sets;
}

std::vector<NamedAdapter> adapters_of_run(const config::RunConfig& config, const Path& directory) {
  std::vector<NamedAdapter> adapters = {{"default", directory}};
  for (const auto& one : config.more_adapters) adapters.push_back({one.name, directory / one.name});
  return adapters;
}

LoadedModel load_model(const ModelOptions& options) {
  LoadedModel loaded;
  loaded.device = parse_device(options.device);
  loaded.architecture = &models::architecture_of(options.model);
  models::LoadOptions load_options{.device = loaded.device, .dtype = std::nullopt};
  if (!options.dtype.empty()) load_options.dtype = io::to_torch(parse_float_dtype(options.dtype, "--dtype"), "--dtype");
  loaded.model = loaded.architecture->load(options.model, load_options);
  loaded.adapters = load_adapters(*loaded.model, named(options.adapters));
  loaded.model->eval();
  loaded.tokenizer = data::find_tokenizer(options.model);
  return loaded;
}

void require_same_tokens(nn::CausalLMImpl& model, const data::Tokenizer& tokenizer) {
  const auto own = tokenizer.glm_ids();
  const auto start = model.answer_start(), ends = model.end_ids();
  if (!own || start.empty()) return;
  const bool is_same = start == std::vector{own->gmask, own->sop} && std::ranges::find(ends, own->eop) != ends.end();
  require<FormatError>(
      is_same,
      "[tokenizer] the model and its tokenizer must mean the same by [gMASK], <sop> and <eop>; found {} and {} in "
      "config.json, and {}, {} and {} in {}; both must be those of one version of the model",
      fmt::join(start, " and "), fmt::join(ends, ", "), own->gmask, own->sop, own->eop, data::kGlmTokenizerFile);
}

const data::Tokenizer& require_tokenizer(const LoadedModel& loaded, std::string_view what) {
  require<IoError>(loaded.tokenizer != nullptr,
                   "[tokenizer] {} needs a tokenizer; the model directory has no tokenizer.model; put it there or give "
                   "token ids",
                   what);
  require_same_tokens(*loaded.model, *loaded.tokenizer);
  return *loaded.tokenizer;
}

std::string readable_text(const data::Tokenizer& tokenizer, std::vector<int64_t> ids) {
  std::erase_if(ids, [&](int64_t id) { return id >= tokenizer.vocab_size(); });
  return to_utf8(tokenizer.decode(ids));
}

std::string generated_text(const data::Tokenizer& tokenizer, const generate::Generation& generation) {
  std::vector<int64_t> ids = generation.token_ids;
  if (generation.finish_reason == "stop" && !ids.empty()) ids.pop_back();
  return readable_text(tokenizer, std::move(ids));
}

void require_free_output(const Path& output, bool overwrite) {
  require<ConfigError>(!output.empty(), "[output] an output must have a name; found none; give one");
  if (overwrite || !std::filesystem::exists(output) || is_stream(output)) return;
  if (std::filesystem::is_directory(output) && std::filesystem::is_empty(output)) return;
  fail<ConfigError>("[output] existing output is never overwritten; {} exists; choose another place or pass --overwrite",
                    output.string());
}

}  // namespace lora::cli
