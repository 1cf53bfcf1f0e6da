#include "cli/best_result.h"

#include "cli/adapter_setup.h"
#include "cli/options.h"
#include "cli/run_setup.h"
#include "core/copy_directory.h"
#include "lora/core/file.h"

namespace lora::cli {
namespace {

/// Where the model is within the best result.
Path model_within(const Path& best, const ResultParts& parts) { return parts.adapter ? best / "model" : best; }

}  // namespace

config::RunConfig with_base_of_result(const config::RunConfig& config, const ResultParts& parts) {
  const Path& output = config.run.output_dir;
  if (!parts.model) return with_base_of(output / "adapter", config);
  config::RunConfig changed = config;
  config::ModelSection model;
  model.path = output / "model";
  model.dtype = config.model.dtype;
  model.offload = config.model.offload;
  changed.model = model;
  changed.adapter.quantization = {};  // what was freed is plain, and so is the rest beside it
  return changed;
}

Path best_directory(const config::RunConfig& config) { return config.run.output_dir / "best"; }

void publish_best(const config::RunConfig& config, const ResultParts& parts) {
  const Path best = best_directory(config), &output = config.run.output_dir;
  std::optional<AtomicDirectory> adapter, model;  // both are whole before one is seen
  if (parts.adapter) {
    adapter.emplace(output / "adapter");
    copy_directory(best, adapter->path());
    if (parts.model) std::filesystem::remove_all(model_within(adapter->path(), parts));
  }
  if (parts.model) {
    model.emplace(output / "model");
    copy_directory(model_within(best, parts), model->path());
  }
  if (adapter) adapter->commit();
  if (model) model->commit();
}

LoadedResult load_result(const config::RunConfig& config, const ResultParts& parts, const at::Device& device) {
  LoadedResult result;
  result.model = make_model(with_base_of_result(config, parts), device);
  if (parts.adapter) result.adapters = load_adapters(*result.model, adapters_of_run(config, config.run.output_dir / "adapter"));
  return result;
}

}  // namespace lora::cli
