#include "core/check.h"
#include "lora/models/glm/config.h"

namespace lora::glm {
namespace {

/// For training from scratch: exact frequencies, and the special tokens at the end of a small vocabulary.
GlmConfig tiny() {
  GlmConfig config;
  config.vocab_size = 512;
  config.hidden_size = 64;
  config.num_layers = config.residual_alpha_layers = 2;
  config.num_attention_heads = 4;
  config.inner_hidden_size = 256;
  config.max_sequence_length = 512;
  config.mask_token_id = 506;
  config.gmask_token_id = 507;
  config.bos_token_id = 510;
  config.eos_token_id = 511;
  config.rope_inv_freq_dtype = config.dtype = DType::kF32;
  return config;
}

}  // namespace

std::vector<std::string> glm_preset_names() { return {"chatglm-6b", "tiny"}; }

GlmConfig glm_preset(std::string_view name) {
  if (name == "chatglm-6b") return {};
  if (name == "tiny") return tiny();
  fail<ConfigError>("[model.preset] a preset must be one of {}; found \"{}\"", fmt::join(glm_preset_names(), ", "), name);
}

}  // namespace lora::glm
