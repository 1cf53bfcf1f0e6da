#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <string>
#include <vector>

#include "lora/adapters/adapter_set.h"

namespace lora {

/// Trains a LoRA's update of some projections alone where a layer computes several (nn::FusedProjections): of ChatGLM's
/// query_key_value or Baichuan's W_pack "q", "k" and "v". Rows of lora_B that belong to others must be zero and stay so: their
/// gradients are zero, which no optimizer with weight decay or moments moves a zero by. Targets that are one projection train as
/// always. The adapter is an ordinary LoRA in its file, which says nothing of it: call it again after loading.
///
/// Throws ConfigError, with nothing changed, for an adapter that is not LoRA, is inactive, or trains what has no such rows
/// (DoRA's magnitudes, biases); for parts that no target has; for other rows that are not zero.
void train_fused_rows(torch::nn::Module& model, const AdapterSet& adapters, const std::vector<std::string>& parts);

/// How many numbers of its trained parameters are held at zero so.
int64_t num_held_numbers(const AdapterSet& adapters);

}  // namespace lora
