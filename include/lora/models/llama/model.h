#pragma once

#include <torch/nn/modules/container/modulelist.h>

#include <memory>

#include "lora/models/llama/config.h"
#include "lora/nn/block_output.h"
#include "lora/nn/causal_lm.h"
#include "lora/nn/decoder_stream.h"
#include "lora/nn/embedding.h"
#include "lora/nn/fused_projections.h"
#include "lora/nn/norm.h"
#include "lora/nn/rotary.h"
#include "lora/ops/ops.h"
#include "lora/ops/segments.h"

/// Llama, with the module names of Hugging Face's LlamaForCausalLM, so that checkpoints and adapters need no renaming.
/// Legend: B batch, S sequence, D model, F feed-forward, H heads, G key/value heads, K head size, V vocabulary.
namespace lora::llama {

using at::Tensor;

using nn::Residual;
/// Apart from the context, since gradients reach them through recomputation.
using nn::PrefixKeys;

/// What every layer of one forward pass shares.
struct AttentionContext : nn::DecoderContext {
  bool causal = true;      ///< without a mask: plain causal, or everything
  ops::Segments segments;  ///< of a packed row; empty: not packed
};

/// Attention of one layer, with grouped keys and values.
class LlamaAttentionImpl : public torch::nn::Module, public nn::FusedProjections {
 public:
  LlamaAttentionImpl(const LlamaConfig& config, int64_t layer, const nn::ParameterOptions& parameters);
  Tensor forward(const Tensor& x_BSD, const AttentionContext& context, const PrefixKeys& prefix = {});
  bool keeps_rows_apart(at::ScalarType dtype, const nn::FastPaths& fast) const;
  nn::RowsByPart rows_by_part(const std::string& child) const override;

  nn::Linear q_proj{nullptr}, k_proj{nullptr}, v_proj{nullptr}, o_proj{nullptr};
  nn::Linear W_pack{nullptr};  ///< instead of the first three: their rows one after the other (LlamaConfig::fused_qkv)

 private:
  Tensor attend(ops::Heads heads, const AttentionContext& context, const PrefixKeys& prefix) const;
  Tensor attend_within_segments(const Tensor& qkv, const AttentionContext& context, const PrefixKeys& prefix) const;

  nn::LinearGroup qkv_, o_;
  int64_t layer_, num_heads_, num_kv_heads_, head_dim_;
};
TORCH_MODULE(LlamaAttention);

/// down(silu(gate(x)) * up(x)).
class LlamaMlpImpl : public torch::nn::Module {
 public:
  LlamaMlpImpl(const LlamaConfig& config, const nn::ParameterOptions& parameters);
  Tensor forward(const Tensor& x_BSD, const nn::FastPaths& fast);
  bool keeps_rows_apart(at::ScalarType dtype, const nn::FastPaths& fast) const;

  nn::Linear gate_proj{nullptr}, up_proj{nullptr}, down_proj{nullptr};

 private:
  nn::LinearGroup gate_up_, down_;
};
TORCH_MODULE(LlamaMlp);

/// One layer: norm, attention, norm, gated feed-forward.
class LlamaDecoderLayerImpl : public torch::nn::Module {
 public:
  LlamaDecoderLayerImpl(const LlamaConfig& config, int64_t layer, const nn::ParameterOptions& parameters);
  /// The sum of a block's result and the stream is left to the next norm, with which it makes one operation.
  Residual forward(const Residual& stream, const AttentionContext& context, const PrefixKeys& prefix = {});
  /// The second half of forward.
  Residual feed_forward(const Residual& stream, const nn::FastPaths& fast);

  nn::RmsNorm input_layernorm{nullptr}, post_attention_layernorm{nullptr};
  LlamaAttention self_attn{nullptr};
  LlamaMlp mlp{nullptr};
  nn::BlockOutput attention_adapters{nullptr}, output_adapters{nullptr};  ///< slots under AdapterHub's names
};
TORCH_MODULE(LlamaDecoderLayer);

/// Embedding, layers and final norm: everything before the head.
class LlamaModelImpl : public torch::nn::Module {
 public:
  LlamaModelImpl(const LlamaConfig& config, const nn::ParameterOptions& parameters);
  nn::PredictingStates forward(const Batch& batch, nn::KvCache* cache, const nn::FastPaths& fast, nn::Recompute recompute,
                               const std::shared_ptr<nn::ActivationStore>& activations = nullptr,
                               const nn::PromptSlotImpl* prompts = nullptr);
  /// See nn::LinearGroup::keeps_rows_apart; everything between the groups has kernels that work row by row.
  bool keeps_rows_apart(const nn::FastPaths& fast) const;

  nn::Embedding embed_tokens{nullptr};
  torch::nn::ModuleList layers;
  nn::RmsNorm norm{nullptr};

 private:
  int64_t max_positions_;
  nn::RotaryTable rotary_;
};
TORCH_MODULE(LlamaModel);

/// The whole model, under Hugging Face's names.
class LlamaForCausalLMImpl : public nn::CausalLMImpl {
 public:
  /// Fresh weights (normal with initializer_range, norms one, biases zero) from torch's default generator, unless the
  /// options leave them uninitialised. `allocate` false and `quantization` concern the layers; embedding, head and norms hold
  /// plain numbers.
  explicit LlamaForCausalLMImpl(const LlamaConfig& config, const nn::ParameterOptions& parameters = {});

  Tensor hidden(const Batch& batch, nn::KvCache* cache = nullptr) override;
  nn::PredictingStates predicting_states(const Batch& batch) override;
  nn::Linear head() override { return lm_head; }
  nn::LinearGroup* head_group() override { return &head_group_; }
  int64_t vocab_size() const override { return config.vocab_size; }
  int64_t num_layers() const override { return config.num_hidden_layers; }
  int64_t attention_width() const override { return config.num_attention_heads * config.head_dim; }
  void untie_head() override;
  int64_t max_positions() const override { return config.max_position_embeddings; }
  at::ScalarType stored_dtype() const override;
  std::vector<int64_t> end_ids() const override { return generation_end_ids.value_or(config.eos_token_ids); }
  std::string model_type() const override { return config.fused_qkv ? "baichuan" : "llama"; }
  std::string model_class() const override { return config.fused_qkv ? "BaiChuanForCausalLM" : "LlamaForCausalLM"; }
  std::vector<std::string> default_targets() const override {
    if (config.fused_qkv) return {"W_pack"};
    return {"q_proj", "v_proj"};
  }
  std::optional<nn::PromptShape> prompt_shape() const override;
  Tensor input_embeddings() override { return model->embed_tokens->weight; }
  int64_t independent_rows() override;

  LlamaConfig config;
  std::optional<std::vector<int64_t>> generation_end_ids;  ///< of generation_config.json, over config's
  LlamaModel model{nullptr};
  nn::Linear lm_head{nullptr};  ///< its weight is embed_tokens' own tensor when tied

 private:
  nn::LinearGroup head_group_;
};
TORCH_MODULE(LlamaForCausalLM);

}  // namespace lora::llama
