// From the sections of a run file to model, tokenizer, data and options of a run.
#pragma once

#include <memory>

#include "lora/config/run_config.h"
#include "lora/data/dataset.h"
#include "lora/data/loader.h"
#include "lora/generate/generate.h"
#include "lora/models/registry.h"
#include "lora/train/trainer.h"

namespace lora::cli {

/// What kind of model the run file names.
const models::Architecture& architecture_of(const config::RunConfig& config);

/// Loads the model, or makes fresh weights.
std::shared_ptr<nn::CausalLMImpl> make_model(const config::RunConfig& config, const at::Device& device);

/// The tokenizer of the run file or of the model; null for token data without one.
std::shared_ptr<const data::Tokenizer> make_tokenizer(const config::RunConfig& config);

/// Where tokens are kept for resumed and repeated runs.
Path token_cache_dir(const config::RunConfig& config);

/// Longest row that has room beside the virtual tokens of an adapter that is yet to be attached.
int64_t row_room(const config::RunConfig& config, const nn::CausalLMImpl& model);

/// How the run file wants data to be read.
data::DatasetOptions dataset_options(const config::RunConfig& config, const nn::CausalLMImpl& model);

/// The rows among `equal`, evaluation rows that occur in the training data, that data.on_overlap leaves out. Throws DataError
/// as it says, and when none of `total` would be left.
std::vector<int64_t> overlap_to_drop(const config::RunConfig& config, const std::vector<int64_t>& equal, int64_t total);

/// Reads a data file as the run file says. Without a cache_dir tokens are neither kept nor taken from an earlier run.
data::Dataset make_dataset(const config::RunConfig& config, const Path& file, const nn::CausalLMImpl& model,
                           const data::Tokenizer* tokenizer, const std::optional<Path>& cache_dir = std::nullopt);

data::LoaderOptions loader_options(const config::RunConfig& config, int64_t pad_id, int64_t max_positions);
train::TrainerOptions trainer_options(const config::RunConfig& config, const at::Device& device, int64_t steps);

/// How answers are generated: the run file's generate section, up to the model's end tokens.
generate::GenerateOptions generate_options(const config::RunConfig& config, nn::CausalLMImpl& model);

/// Warns and throws as the supervision rules say (data.require_end_token). Logs one decoded row.
void check_supervision(const config::RunConfig& config, const data::Dataset& dataset, const data::Tokenizer* tokenizer,
                       const nn::CausalLMImpl& model);

}  // namespace lora::cli
