#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lora/adapters/adapter_set.h"
#include "lora/nn/causal_lm.h"

namespace lora {

/// Of a LoRA on fused layers, adapts only the rows of some parts (nn::CausalLMImpl::fused_rows): {"q", "v"} of query_key_value.
/// The B factors' other rows, which must be zero, get no gradient and stay zero, so that the adapter is saved, merged and read
/// elsewhere as any other LoRA. Throws ConfigError for another method, for a target that is not fused, for a part that it does
/// not have, and where the other rows are not zero (an init that gives B numbers, DoRA, which scales every row).
void train_fused_rows(const nn::CausalLMImpl& model, const AdapterSet& adapters, const std::vector<std::string>& parts);

/// Numbers of the adapter's parameters that train_fused_rows holds at zero; freeze_base() does not count them as trainable.
int64_t numbers_held_at_zero(const AdapterSet& adapters);

}  // namespace lora
