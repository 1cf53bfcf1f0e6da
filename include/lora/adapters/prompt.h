#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lora/nn/prompt.h"

namespace lora {

/// On the keys and values of ChatGLM-6B's P-tuning v2.
constexpr double kPTuningV2Dropout = 0.1;

/// Prefix tuning (Li and Liang 2021), and P-tuning v2 (Liu et al. 2022) as ChatGLM-6B has it: learned keys and values before
/// every sequence, in every layer. With PEFT's meaning of every option.
struct PrefixOptions {
  int64_t num_virtual_tokens = 20;
  bool projection = false;          ///< made by a network of two layers from smaller embeddings
  int64_t encoder_hidden_size = 0;  ///< of that network; 0: the width of a layer's keys
  bool init_zero = false;           ///< no effect at the start; else normal
  double dropout = 0;               ///< on keys and values, in training
  std::string base_model_name = {};
};

/// Prompt tuning (Lester et al. 2021): learned embeddings before every sequence.
struct PromptOptions {
  int64_t num_virtual_tokens = 20;
  std::string init = "RANDOM";                 ///< RANDOM | SAMPLE_VOCAB | TEXT
  std::vector<int64_t> init_ids = {};          ///< TEXT: tokens of the text, cut or repeated to num_virtual_tokens
  std::string init_text = {}, tokenizer = {};  ///< written into adapter_config.json
  std::string base_model_name = {};
};

/// P-tuning (Liu et al. 2021): such embeddings made by a network.
struct PTuningOptions {
  int64_t num_virtual_tokens = 20;
  std::string encoder = "MLP";      ///< MLP | LSTM
  int64_t encoder_hidden_size = 0;  ///< 0: the width of an embedding
  int64_t encoder_num_layers = 2;   ///< of the LSTM
  double encoder_dropout = 0;       ///< between its layers
  std::string base_model_name = {};
};

/// A prompt whose parameters may be a network over embeddings; an adapter file holds what the network gives.
class PromptEncoder : public nn::Prompt {
 public:
  /// What `prompt_embeddings` holds in a file: (P, D), or (P, 2 L G K) of a prefix.
  virtual at::Tensor flat() = 0;
  /// Whether the parameters are just that, so that a file initialises them.
  virtual bool is_plain() const = 0;
  /// Throws ShapeError for another shape, ConfigError for a network, from whose result its weights cannot be found.
  void load_flat(const at::Tensor& prompt_embeddings);

  at::Tensor embedding_weight;  ///< "embedding.weight"

 protected:
  /// Registers `weight` as "embedding.weight".
  void set_embedding(const at::Tensor& weight);
};

/// Throw ConfigError for options out of range. As PEFT's PrefixEncoder, PromptEmbedding and PromptEncoder; everything in
/// fp32. `as_stored`: without the network, for values that come from a file.
std::shared_ptr<PromptEncoder> make_prefix(const PrefixOptions& options, const nn::PromptShape& shape, bool as_stored = false);
/// table_VD: the model's embeddings, for SAMPLE_VOCAB and TEXT.
std::shared_ptr<PromptEncoder> make_prompt(const PromptOptions& options, const nn::PromptShape& shape,
                                           const at::Tensor& table_VD);
std::shared_ptr<PromptEncoder> make_ptuning(const PTuningOptions& options, const nn::PromptShape& shape, bool as_stored = false);

}  // namespace lora
