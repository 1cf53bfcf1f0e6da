#include "models/llama/layout.h"

namespace lora::llama {

nn::ModelLayout layout_of(const LlamaConfig& config) {
  nn::ModelLayout layout{.weights = {}, .dtype = config.dtype, .quantization = config.quantization};
  for (auto& [name, shape] : llama_weight_shapes(config)) layout.weights.push_back({name, shape});
  // Old checkpoints carry what every model can compute; a tied head may be stored besides.
  layout.may_be_ignored = [is_tied = config.tie_word_embeddings](const std::string& name) {
    return name.ends_with("rotary_emb.inv_freq") || (name == "lm_head.weight" && is_tied);
  };
  return layout;
}

}  // namespace lora::llama
