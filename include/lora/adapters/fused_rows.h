#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <string>
#include <vector>

#include "lora/adapters/adapter_set.h"

namespace lora {

/// Of a LoRA on fused layers, adapts only the rows of some parts (nn::FusedLayers): {"q", "v"} of query_key_value.
/// The B factors' other rows, which must be zero, get no gradient and stay zero, so that the adapter is saved, merged and read
/// elsewhere as any other LoRA. Throws ConfigError for another method, for a target that is not fused, for a part that it does
/// not have, and where the other rows are not zero (an init that gives B numbers, DoRA, which scales every row).
void train_fused_rows(const torch::nn::Module& model, const AdapterSet& adapters, const std::vector<std::string>& parts);

/// Numbers of the adapter's parameters that train_fused_rows holds at zero; freeze_base() does not count them as trainable.
int64_t numbers_held_at_zero(const AdapterSet& adapters);

}  // namespace lora
