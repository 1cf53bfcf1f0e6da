// adapter.init_from: a run that starts from a saved adapter.
#pragma once

#include <string>

#include "lora/adapters/adapter_set.h"
#include "lora/config/run_config.h"
#include "lora/nn/causal_lm.h"

namespace lora::cli {

/// Attaches the adapter of section.init_from. Its config stands for the keys that are not given, and must agree with those that
/// are (else ConfigError); dropouts, which are nobody's but the run's, are those of the run file.
AdapterSet load_saved_adapter(const config::AdapterSection& section, nn::CausalLMImpl& model, const std::string& name);

}  // namespace lora::cli
