// From the sections of a run file to the objects of a run: one function per stage.
#pragma once

#include <memory>

#include "lora/adapters/adapter_sets.h"
#include "lora/adapters/freeze.h"
#include "lora/config/run_config.h"
#include "lora/data/dataset.h"
#include "lora/data/loader.h"
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

/// Attaches the adapter (fresh, or from adapter.init_from) and those of adapter.also, all active; none for method none.
/// total_steps: of the run, for AdaLoRA's schedule. The tokenizer (may be null) is for adapter.prompt_tuning_init_text. With a
/// checkpoint whose run found an adapter's form when it began (EVA's ranks), that adapter has that form.
AdapterSets make_adapters(const config::RunConfig& config, nn::CausalLMImpl& model, const data::Tokenizer* tokenizer,
                          int64_t total_steps, const std::optional<Path>& checkpoint = std::nullopt);

/// What a fresh adapter takes from the training data (EVA) or from the weights before they were quantised (LoftQ); nothing for
/// other inits. Before freeze(). loader: how the run reads its rows.
void start_adapters(const config::RunConfig& config, nn::CausalLMImpl& model, const AdapterSets& adapters,
                    const data::Dataset& rows, const data::LoaderOptions& loader);

/// Where a run saves its base, since the adapter fits no other (LoftQ with more than one iteration); nothing: it does not.
std::optional<Path> own_base(const config::RunConfig& config);

/// The run file with the model that a resumed run goes on with: that of the checkpoint, where the run made its own.
config::RunConfig with_base_of(const Path& checkpoint, const config::RunConfig& config);

/// Applies the freezing rules.
FreezeReport freeze(const config::RunConfig& config, nn::CausalLMImpl& model, const AdapterSets& adapters);

data::LoaderOptions loader_options(const config::RunConfig& config, int64_t pad_id, int64_t max_positions);
train::TrainerOptions trainer_options(const config::RunConfig& config, const at::Device& device, int64_t steps);

/// Warns and throws as the supervision rules say (data.require_end_token). Logs one decoded row.
void check_supervision(const config::RunConfig& config, const data::Dataset& dataset, const data::Tokenizer* tokenizer,
                       const nn::CausalLMImpl& model);

}  // namespace lora::cli
