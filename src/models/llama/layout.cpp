#include "models/llama/layout.h"

namespace lora::llama {

LlamaConfig read_stored_config(const Path& directory) {
  LlamaConfig config = read_llama_config(directory);
  if (config.tie_word_embeddings && nn::stores_other_head(directory, "model.embed_tokens.weight", "lm_head.weight")) {
    config.tie_word_embeddings = false;
  }
  return config;
}

nn::ModelLayout layout_of(const LlamaConfig& config) {
  nn::ModelLayout layout{.weights = {}, .dtype = config.dtype, .quantization = config.quantization};
  for (auto& [name, shape] : llama_weight_shapes(config)) layout.weights.push_back({name, shape});
  layout.may_be_ignored = nn::computed_weights(config.tie_word_embeddings);
  return layout;
}

}  // namespace lora::llama
