#pragma once

#include "lora/models/llama/config.h"
#include "lora/nn/model_weights.h"

namespace lora::llama {

/// config.json as its weights have it: a head that is stored beside the embeddings, and is not their table, is not tied.
LlamaConfig read_stored_config(const Path& directory);

/// Which weights such a model has, and which files may hold besides.
nn::ModelLayout layout_of(const LlamaConfig& config);

}  // namespace lora::llama
