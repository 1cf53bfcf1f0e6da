#pragma once

#include "lora/models/llama/config.h"
#include "lora/nn/model_weights.h"

namespace lora::llama {

/// Which weights such a model has, and which files may hold besides.
nn::ModelLayout layout_of(const LlamaConfig& config);

}  // namespace lora::llama
