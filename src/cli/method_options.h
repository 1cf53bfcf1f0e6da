// From the adapter section of a run file to the options of its method.
#pragma once

#include "lora/adapters/inject.h"
#include "lora/config/run_config.h"
#include "lora/data/tokenizer.h"
#include "lora/nn/causal_lm.h"

namespace lora::cli {

/// Puts a given key of the run file into `target`; keys that are not given leave it.
template <class Target, class Value>
void apply(Target& target, const std::optional<Value>& value) {
  if (value) target = *value;
}

/// Of `section`, one of the adapter sections of `config`. The tokenizer (may be null) is for adapter.prompt_tuning_init_text;
/// total_steps, of the run, are for AdaLoRA's schedule.
MethodOptions method_options(const config::RunConfig& config, const config::AdapterSection& section,
                             const nn::CausalLMImpl& model, const data::Tokenizer* tokenizer, int64_t total_steps);

/// Positions that the section's virtual tokens will take from every row.
int64_t num_virtual_positions(const config::AdapterSection& section, const nn::CausalLMImpl& model);

}  // namespace lora::cli
