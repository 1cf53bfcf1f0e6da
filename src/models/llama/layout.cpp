#include "models/llama/layout.h"

namespace lora::llama {

nn::ModelLayout layout_of(const LlamaConfig& config) {
  nn::ModelLayout layout{.weights = {}, .dtype = config.dtype, .quantization = config.quantization};
  for (auto& [name, shape] : llama_weight_shapes(config)) layout.weights.push_back({name, shape});
  layout.may_be_ignored = nn::computed_weights(config.tie_word_embeddings);
  return layout;
}

}  // namespace lora::llama
