#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/dtype.h"
#include "lora/core/path.h"
#include "lora/formats/quantization.h"

namespace lora::llama {

/// Sizes and constants of a Llama model, in the words of Hugging Face's config.json.
struct LlamaConfig {
  int64_t vocab_size = 32000;
  int64_t hidden_size = 4096;
  int64_t intermediate_size = 11008;
  int64_t num_hidden_layers = 32;
  int64_t num_attention_heads = 32;
  int64_t num_key_value_heads = 32;
  int64_t head_dim = 128;
  int64_t max_position_embeddings = 4096;
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000;
  double initializer_range = 0.02;
  bool tie_word_embeddings = false;
  bool attention_bias = false;
  bool mlp_bias = false;
  bool fused_qkv = false;  ///< q, k and v are rows of one layer, W_pack: Baichuan-7B
  int64_t bos_token_id = 1;
  std::vector<int64_t> eos_token_ids = {2};
  std::optional<int64_t> pad_token_id;
  DType dtype = DType::kF32;
  /// How the weights are stored when bitsandbytes quantised them.
  std::optional<formats::QuantizationConfig> quantization;

  bool operator==(const LlamaConfig&) const = default;
};

/// Reads config.json text; old (rope_theta, torch_dtype) and new (rope_parameters, dtype) spellings. model_type "baichuan" is
/// Baichuan-7B, whose q, k and v are one layer; its larger and later namesakes are other models.
/// Throws FormatError for anything that is neither: another model_type, activation, scaled rotary embedding, weights
/// that something else than bitsandbytes quantised, or sizes that do not fit together. `where` opens the message.
LlamaConfig parse_llama_config(std::string_view json, std::string_view where);

/// config.json of a model directory.
LlamaConfig read_llama_config(const Path& directory);

/// The text of config.json, with both spellings, so that old and new readers agree.
std::string write_llama_config(const LlamaConfig& config);
/// The text of generation_config.json: the special tokens.
std::string write_generation_config(const LlamaConfig& config);

/// llama-7b, llama-13b, llama-30b, llama-65b (the first version), llama2-7b, llama2-13b, llama2-70b, baichuan-7b; for training
/// from scratch tiny, 15m, 110m, 1b. Throws ConfigError otherwise.
LlamaConfig llama_preset(std::string_view name);
std::vector<std::string> llama_preset_names();

/// A fresh configuration: a preset (or the defaults) with fields of config.json set over it, values as YAML text.
/// head_dim and num_key_value_heads follow from the others unless given. Throws ConfigError.
LlamaConfig fresh_llama_config(const std::optional<std::string>& preset,
                               const std::vector<std::pair<std::string, std::string>>& fields);

/// Throws ConfigError unless the sizes are positive and fit together; `where` opens the message.
void check_llama_config(const LlamaConfig& config, std::string_view where);

/// Name and shape of every weight, in the order of the model. A tied head has no entry.
std::vector<std::pair<std::string, std::vector<int64_t>>> llama_weight_shapes(const LlamaConfig& config);

}  // namespace lora::llama
