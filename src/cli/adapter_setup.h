// From the adapter sections of a run file to the adapters of a run.
#pragma once

#include <optional>

#include "lora/adapters/adapter_sets.h"
#include "lora/adapters/freeze.h"
#include "lora/config/run_config.h"
#include "lora/data/dataset.h"
#include "lora/data/loader.h"
#include "lora/nn/causal_lm.h"

namespace lora::cli {

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

/// The run file with the base that a saved adapter fits alone, where its run made one of its own; as it is for other adapters.
config::RunConfig with_base_of(const Path& adapter, const config::RunConfig& config);

/// Applies the freezing rules.
FreezeReport freeze(const config::RunConfig& config, nn::CausalLMImpl& model, const AdapterSets& adapters);

}  // namespace lora::cli
