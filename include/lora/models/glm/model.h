#pragma once

#include <torch/nn/modules/container/modulelist.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lora/models/glm/config.h"
#include "lora/nn/block_output.h"
#include "lora/nn/causal_lm.h"
#include "lora/nn/decoder_stream.h"
#include "lora/nn/embedding.h"
#include "lora/nn/fused_projections.h"
#include "lora/nn/norm.h"
#include "lora/nn/rotary.h"
#include "lora/ops/ops.h"
#include "lora/ops/prefix_attention.h"

/// ChatGLM-6B (the first version), with the module names of its published ChatGLMForConditionalGeneration, so that checkpoints
/// and adapters need no renaming.
/// Legend: B batch, S sequence, D model, H heads, K head size, P prefixed places, T keys.
namespace lora::glm {

using at::Tensor;

/// Here the stream is the input of the last block, normalised: the model adds to it, times sqrt(2 layers), and not to what was
/// normalised.
using nn::Residual;

/// What every layer of one forward pass shares. The first half of the rotary tables turns by the position in the sequence, the
/// second by that in the answer.
struct AttentionContext : nn::DecoderContext {
  std::vector<int64_t> contexts;  ///< how many first places of each sequence all its tokens see
  ops::Contexts shared;          ///< the same on the device, where no kernel of ours attends to a first pass; longest 0 otherwise
  std::vector<int64_t> lengths;  ///< of a packed row's sequences; empty: not packed
  Tensor source_N,
      real_N;  ///< of a packed row with a prefix: what stands at its longer rows' places, and where its own tokens do
};

/// Attention of one layer, with the fused, head by head projection of the published weights.
class GlmAttentionImpl : public torch::nn::Module, public nn::FusedProjections {
 public:
  GlmAttentionImpl(const GlmConfig& config, int64_t layer, const nn::ParameterOptions& parameters);
  /// prefix: in pairs (see models/glm/heads.h).
  Tensor forward(const Tensor& x_BSD, const AttentionContext& context, const nn::PrefixKeys& prefix = {});
  bool keeps_rows_apart(at::ScalarType dtype, const nn::FastPaths& fast) const;
  nn::RowsByPart rows_by_part(const std::string& child) const override;

  /// Rows of its weight stand head by head: of queries, keys and values, K each.
  nn::Linear query_key_value{nullptr}, dense{nullptr};

 private:
  Tensor attend(ops::Heads heads, const AttentionContext& context) const;

  nn::LinearGroup qkv_, dense_;
  int64_t layer_, num_heads_;
};
TORCH_MODULE(GlmAttention);

/// 4h_to_h(gelu(h_to_4h(x))).
class GlmMlpImpl : public torch::nn::Module {
 public:
  GlmMlpImpl(const GlmConfig& config, const nn::ParameterOptions& parameters);
  Tensor forward(const Tensor& x_BSD, const nn::FastPaths& fast);
  bool keeps_rows_apart(at::ScalarType dtype, const nn::FastPaths& fast) const;

  nn::Linear dense_h_to_4h{nullptr}, dense_4h_to_h{nullptr};

 private:
  nn::LinearGroup up_, down_;
};
TORCH_MODULE(GlmMlp);

/// One layer: its residuals come from the normalised input.
class GlmLayerImpl : public torch::nn::Module {
 public:
  GlmLayerImpl(const GlmConfig& config, int64_t layer, const nn::ParameterOptions& parameters);
  /// The sum of a block's result and the stream is left to the next norm, with which it makes one operation.
  Residual forward(const Residual& stream, const AttentionContext& context, const nn::PrefixKeys& prefix = {});
  /// The second half of forward.
  Residual feed_forward(const Residual& stream, const nn::FastPaths& fast);

  nn::LayerNorm input_layernorm{nullptr}, post_attention_layernorm{nullptr};
  GlmAttention attention{nullptr};
  GlmMlp mlp{nullptr};
  nn::BlockOutput attention_adapters{nullptr}, output_adapters{nullptr};  ///< slots under AdapterHub's names

 private:
  Tensor adapted(nn::BlockOutput& adapters, const Tensor& out_BSD, const Tensor& normed_BSD) const;

  double alpha_;
};
TORCH_MODULE(GlmLayer);

/// Embedding, layers and final norm: everything before the head.
class GlmModelImpl : public torch::nn::Module {
 public:
  GlmModelImpl(const GlmConfig& config, const nn::ParameterOptions& parameters);
  nn::PredictingStates forward(const Batch& batch, nn::KvCache* cache, const nn::FastPaths& fast, nn::Recompute recompute,
                               const std::shared_ptr<nn::ActivationStore>& activations = nullptr,
                               const nn::PromptSlotImpl* prompts = nullptr);
  /// See nn::LinearGroup::keeps_rows_apart; everything between the groups has kernels that work row by row.
  bool keeps_rows_apart(const nn::FastPaths& fast) const;

  nn::Embedding word_embeddings{nullptr};
  torch::nn::ModuleList layers;
  nn::LayerNorm final_layernorm{nullptr};

 private:
  GlmConfig config_;
  nn::RotaryTable rotary_;  ///< of half a head
};
TORCH_MODULE(GlmModel);

/// Positions and what each token may see follow from the token numbers: a row is a prompt with [gMASK] (or [MASK]), <sop> and
/// an answer, see prompt_places in models/glm/positions.h for what is refused. Padding on the right needs no mask, padding on the
/// left needs Batch::attention_mask_BS. With a cache the first pass holds the whole prompt and <sop>.
class ChatGlmForConditionalGenerationImpl : public nn::CausalLMImpl {
 public:
  /// Fresh weights (normal with initializer_range, norms one, biases zero) from torch's default generator, unless the
  /// options leave them uninitialised. `allocate` false and `quantization` concern the layers; embedding, head and norms hold
  /// plain numbers.
  explicit ChatGlmForConditionalGenerationImpl(const GlmConfig& config, const nn::ParameterOptions& parameters = {});

  Tensor hidden(const Batch& batch, nn::KvCache* cache = nullptr) override;
  nn::PredictingStates predicting_states(const Batch& batch) override;
  at::ScalarType stored_dtype() const override;
  std::vector<int64_t> end_ids() const override { return generation_end_ids.value_or(std::vector{config.eos_token_id}); }
  std::vector<int64_t> answer_start() const override { return {config.gmask_token_id, config.bos_token_id}; }
  nn::Linear head() override { return lm_head; }
  nn::LinearGroup* head_group() override { return &head_group_; }
  int64_t vocab_size() const override { return config.vocab_size; }
  int64_t num_layers() const override { return config.num_layers; }
  int64_t attention_width() const override { return config.hidden_size; }
  void untie_head() override;
  int64_t max_positions() const override { return config.max_sequence_length; }
  std::string model_type() const override { return "chatglm"; }
  std::string model_class() const override { return "ChatGLMForConditionalGeneration"; }
  std::vector<std::string> default_targets() const override { return {"query_key_value"}; }
  /// A prefix's keys are not rotated, and real tokens begin at position 0 behind them.
  bool prefix_takes_positions() const override { return false; }
  bool is_repeatable() const override { return false; }
  std::optional<nn::PromptShape> prompt_shape() const override;
  Tensor input_embeddings() override { return transformer->word_embeddings->weight; }
  int64_t independent_rows() override;

  GlmConfig config;
  std::optional<std::vector<int64_t>> generation_end_ids;  ///< of generation_config.json, over config's
  GlmModel transformer{nullptr};
  nn::Linear lm_head{nullptr};  ///< its weight is word_embeddings' own tensor when tied

 private:
  nn::LinearGroup head_group_;
};
TORCH_MODULE(ChatGlmForConditionalGeneration);

}  // namespace lora::glm
