// The result with the lowest held-out loss of a run, in a folder of its own.
#pragma once

#include <memory>

#include "lora/adapters/adapter_sets.h"
#include "lora/config/run_config.h"
#include "lora/core/path.h"
#include "lora/nn/causal_lm.h"

namespace lora::cli {

/// Which files a run's result has.
struct ResultParts {
  bool adapter = false, model = false;
};

/// The run file with the base that a run's own result fits: the model that it trained, or that of its adapter.
config::RunConfig with_base_of_result(const config::RunConfig& config, const ResultParts& parts);

/// <output_dir>/best: the adapter's files, or the model's; of a run with both the model is in its folder `model`.
Path best_directory(const config::RunConfig& config);

/// Puts copies of the best result where a run's result is: adapter/, model/ or both. Each appears whole or not at all.
void publish_best(const config::RunConfig& config, const ResultParts& parts);

struct LoadedResult {
  std::shared_ptr<nn::CausalLMImpl> model;
  AdapterSets adapters;
};

/// The model and the adapters that adapter/ and model/ hold, as the run had them.
LoadedResult load_result(const config::RunConfig& config, const ResultParts& parts, const at::Device& device);

}  // namespace lora::cli
