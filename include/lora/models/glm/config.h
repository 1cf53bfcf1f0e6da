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
#include "lora/nn/model_weights.h"

namespace lora::glm {

/// Sizes and constants of ChatGLM-6B (the first version), in the words of its published config.json. The defaults are the
/// current checkpoint's; the first one has a vocabulary of 150528, with all special tokens 20000 further on.
struct GlmConfig {
  int64_t vocab_size = 130528;
  int64_t hidden_size = 4096;
  int64_t num_layers = 28;
  int64_t num_attention_heads = 32;
  int64_t inner_hidden_size = 16384;
  int64_t max_sequence_length = 2048;
  double layernorm_epsilon = 1e-5;
  double initializer_range = 0.02;  ///< of fresh weights
  int64_t bos_token_id = 130004;    ///< <sop>: where the answer begins
  int64_t eos_token_id = 130005;    ///< <eop>
  int64_t mask_token_id = 130000;   ///< [MASK]
  int64_t gmask_token_id = 130001;  ///< [gMASK]: stands for the answer in the prompt
  std::optional<int64_t> pad_token_id = 3;
  /// The residual is the normalised input times sqrt(2 residual_alpha_layers); its published code always uses 28.
  int64_t residual_alpha_layers = 28;
  bool tie_word_embeddings = false;
  /// kF16: rotary frequencies are rounded to half precision, as the published weights were trained; or kF32.
  DType rope_inv_freq_dtype = DType::kF16;
  DType dtype = DType::kF32;
  /// How the weights are stored when bitsandbytes quantised them.
  std::optional<formats::QuantizationConfig> quantization = std::nullopt;

  int64_t head_dim() const { return hidden_size / num_attention_heads; }
  bool operator==(const GlmConfig&) const = default;
};

/// Reads config.json text. Nothing that the sizes need is assumed, since the defaults of the published class are those of
/// another vocabulary: vocab_size, hidden_size, num_layers, num_attention_heads, inner_hidden_size, max_sequence_length,
/// bos_token_id and eos_token_id must be there. [MASK] and [gMASK] are, unless said, four and three before <sop>, as in both
/// vocabularies; residual_alpha_layers is num_layers, rope_inv_freq_dtype float16, tie_word_embeddings false. Throws
/// FormatError for another model_type, one-dimensional positions, weights that the model's own code quantised, token numbers
/// outside the vocabulary, or sizes that do not fit together. `where` opens the message.
GlmConfig parse_glm_config(std::string_view json, std::string_view where);

/// config.json of a model directory.
GlmConfig read_glm_config(const Path& directory);

/// The text of config.json, with everything that is assumed elsewhere.
std::string write_glm_config(const GlmConfig& config);

/// chatglm-6b; for training from scratch tiny. Throws ConfigError otherwise.
GlmConfig glm_preset(std::string_view name);
std::vector<std::string> glm_preset_names();

/// A fresh configuration: a preset (or the defaults) with fields of config.json set over it, values as YAML text.
/// residual_alpha_layers follows num_layers unless given; special tokens that a smaller vocabulary cannot hold move to its end,
/// as in the published one. Throws ConfigError.
GlmConfig fresh_glm_config(const std::optional<std::string>& preset,
                           const std::vector<std::pair<std::string, std::string>>& fields);

/// What a run may set over a checkpoint's own: rope_inv_freq_dtype and residual_alpha_layers, which change how it computes and
/// no weight.
std::vector<std::string> glm_loaded_fields();
/// `config` with some of those, values as YAML text. Throws ConfigError for others.
GlmConfig with_loaded_fields(GlmConfig config, const std::vector<std::pair<std::string, std::string>>& fields);

/// Throws ConfigError unless the sizes are positive and fit together, and the special tokens are different ones of the
/// vocabulary; `where` opens the message.
void check_glm_config(const GlmConfig& config, std::string_view where);

/// Every weight of the model, in its order. A tied head has no entry; norms are wide.
std::vector<nn::WeightShape> glm_weight_shapes(const GlmConfig& config);

}  // namespace lora::glm
