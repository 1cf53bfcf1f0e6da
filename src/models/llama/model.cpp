#include "lora/models/llama/model.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/check.h"
#include "lora/io/dtype.h"
#include "lora/nn/row_adapters.h"
#include "lora/ops/autocast.h"
#include "lora/ops/ops.h"
#include "nn/decoder_pass.h"
#include "ops/rows.h"

namespace lora::llama {
namespace {

nn::Linear linear(int64_t in, int64_t out, bool bias, const nn::ParameterOptions& parameters) {
  return nn::Linear(nn::LinearOptions{in, out, bias, parameters});
}

/// Which keys each new token may look at, (B or 1, 1, S, virtual + cached + S); undefined when their order says it all.
/// Of a packed row each sequence has its own; one of `longest` positions serves all.
Tensor attention_mask(const Batch& batch, const nn::KvCache* cache, int64_t num_prefixed, int64_t longest) {
  const int64_t length = batch.input_ids_BS.size(1);
  const int64_t cached = cache != nullptr ? cache->length() : 0;
  const auto options = batch.input_ids_BS.options().dtype(at::kBool);
  if (!batch.attention_mask_BS.defined()) {
    return num_prefixed == 0 ? Tensor()
                             : nn::with_virtual_columns(at::ones({1, 1, longest, longest}, options).tril(), num_prefixed);
  }
  const Tensor causal = at::ones({length, cached + length}, options).tril(cached);
  require<ShapeError>(batch.attention_mask_BS.size(1) == cached + length,
                      "[llama] the attention mask must cover {} positions; found {}", cached + length,
                      batch.attention_mask_BS.size(1));
  const Tensor seen = at::logical_and(causal, batch.attention_mask_BS.to(at::kBool).unsqueeze(1).unsqueeze(1));
  // A position that may look at nothing (padding on the left) looks at itself: numbers, not NaN.
  const Tensor itself = at::ones({length, cached + length}, options).tril(cached).triu(cached);
  const Tensor sees_nothing = seen.any(-1, /*keepdim=*/true).logical_not();
  const int64_t num_virtual = cache != nullptr ? cache->virtual_tokens() : num_prefixed;
  return nn::with_virtual_columns(at::logical_or(seen, at::logical_and(itself, sees_nothing)), num_virtual);
}

/// Rotary tables reach to the padded length of the longest class.
int64_t table_length(const ops::Segments& segments, int64_t length) {
  for (const auto& one : segments.classes) length = std::max(length, one.length);
  return length;
}

/// (B, S): how many real tokens stand before each of the last `length`.
Tensor positions_without_padding(const Tensor& mask_BT, int64_t length) {
  const Tensor place_BT = mask_BT.to(at::kLong).cumsum(1) - 1;
  return place_BT.clamp_min(0).slice(1, place_BT.size(1) - length);
}

/// (B or 1, S): what rotary tables are made for. first: the position of the first new token. As in transformers, padding
/// takes no position when generating, and does otherwise.
Tensor positions_of(const Batch& batch, const ops::Segments& segments, int64_t first, int64_t num_virtual, int64_t length,
                    bool has_cache) {
  if (batch.position_ids_BS.defined()) return batch.position_ids_BS + num_virtual;
  if (has_cache && batch.attention_mask_BS.defined()) {
    return positions_without_padding(batch.attention_mask_BS, length) + num_virtual;
  }
  if (segments.by_bounds()) return segments.position_1N;
  return at::arange(first, first + table_length(segments, length), batch.input_ids_BS.options()).unsqueeze(0);
}

/// (B, S, H K). mask: bool, true = may look; undefined: causal, or everything.
Tensor masked_attention(const ops::Heads& heads, const Tensor& mask, bool causal) {
  const int64_t num_heads = heads.q_BHSK.size(1);
  const std::optional<Tensor> given = mask.defined() ? std::optional(mask) : std::nullopt;
  const Tensor seen_BHSK = at::scaled_dot_product_attention(heads.q_BHSK, ops::repeat_heads(heads.k_BGSK, num_heads),
                                                            ops::repeat_heads(heads.v_BGSK, num_heads), given,
                                                            /*dropout_p=*/0.0, /*is_causal=*/!given && causal);
  return seen_BHSK.transpose(1, 2).flatten(2);
}

/// Keys and values of virtual tokens before each sequence's own.
Tensor attend_with_prefix(const ops::Heads& heads, const Tensor& mask, const PrefixKeys& prefix) {
  const auto extended = [](const Tensor& x_GPK, const Tensor& x_BGSK) {
    return at::cat({x_GPK.to(x_BGSK.scalar_type()).unsqueeze(0).expand({x_BGSK.size(0), -1, -1, -1}), x_BGSK}, 2);
  };
  return masked_attention({heads.q_BHSK, extended(prefix.k_GPK, heads.k_BGSK), extended(prefix.v_GPK, heads.v_BGSK)}, mask,
                          /*causal=*/false);
}

}  // namespace

LlamaAttentionImpl::LlamaAttentionImpl(const LlamaConfig& config, int64_t layer, const nn::ParameterOptions& parameters)
    : layer_(layer),
      num_heads_(config.num_attention_heads),
      num_kv_heads_(config.num_key_value_heads),
      head_dim_(config.head_dim) {
  const int64_t hidden = config.hidden_size;
  const bool bias = config.attention_bias;
  const int64_t queries = num_heads_ * head_dim_, keys = num_kv_heads_ * head_dim_;
  if (config.fused_qkv) {
    W_pack = register_module("W_pack", linear(hidden, queries + 2 * keys, bias, parameters));
    qkv_ = nn::LinearGroup({W_pack});
  } else {
    q_proj = register_module("q_proj", linear(hidden, queries, bias, parameters));
    k_proj = register_module("k_proj", linear(hidden, keys, bias, parameters));
    v_proj = register_module("v_proj", linear(hidden, keys, bias, parameters));
    qkv_ = nn::LinearGroup({q_proj, k_proj, v_proj});
  }
  o_proj = register_module("o_proj", linear(queries, hidden, bias, parameters));
  o_ = nn::LinearGroup({o_proj});
}

Tensor LlamaAttentionImpl::forward(const Tensor& x_BSD, const AttentionContext& context, const PrefixKeys& prefix) {
  const Tensor qkv = qkv_.forward(x_BSD, context.fast);
  if (context.joined) {
    return o_.forward(ops::joined_attention(qkv, context.cos, context.sin, num_heads_, num_kv_heads_, context.segments.lengths),
                      context.fast);
  }
  if (context.segments.by_class()) return o_.forward(attend_within_segments(qkv, context, prefix), context.fast);
  const auto heads = ops::split_rotated(qkv, context.cos, context.sin, num_heads_, num_kv_heads_, context.fast.fused_rotary);
  return o_.forward(attend(heads, context, prefix), context.fast);
}

bool LlamaAttentionImpl::keeps_rows_apart(at::ScalarType dtype, const nn::FastPaths& fast) const {
  return fast.fused_rotary && fast.fused_attention && qkv_.keeps_rows_apart(dtype, fast) && o_.keeps_rows_apart(dtype, fast);
}

nn::RowsByPart LlamaAttentionImpl::rows_by_part(const std::string& child) const {
  if (child != "W_pack") return {};
  const int64_t queries = num_heads_ * head_dim_, keys = num_kv_heads_ * head_dim_;
  nn::RowsByPart rows;
  for (int64_t row = 0; row < queries + 2 * keys; ++row) {
    rows[row < queries ? "q" : row < queries + keys ? "k" : "v"].push_back(row);
  }
  return rows;
}

/// Each class of sequences is a batch of its own.
Tensor LlamaAttentionImpl::attend_within_segments(const Tensor& qkv, const AttentionContext& context,
                                                  const PrefixKeys& prefix) const {
  const int64_t width = qkv.size(-1);
  const Tensor qkv_PW = ops::laid_out(qkv.reshape({-1, width}), context.segments);
  std::vector<int64_t> sizes;
  for (const auto& one : context.segments.classes) sizes.push_back(one.count * one.length);
  std::vector<Tensor> seen;
  size_t i = 0;
  for (const Tensor& part : qkv_PW.split_with_sizes(sizes)) {
    const int64_t length = context.segments.classes[i++].length;
    const auto heads = ops::split_rotated(part.view({-1, length, width}), context.cos.slice(2, 0, length),
                                          context.sin.slice(2, 0, length), num_heads_, num_kv_heads_, context.fast.fused_rotary);
    const Tensor attended =
        prefix.k_GPK.defined()
            ? attend_with_prefix(heads, context.mask.slice(2, 0, length).slice(3, 0, context.num_prefixed + length), prefix)
            : ops::causal_attention(heads, context.fast.fused_attention);
    seen.push_back(attended.reshape({-1, num_heads_ * head_dim_}));
  }
  return ops::taken_back(at::cat(seen), context.segments).view({qkv.size(0), qkv.size(1), -1});
}

/// (B, S, H K). Only plain causal attention has a fast form.
Tensor LlamaAttentionImpl::attend(ops::Heads heads, const AttentionContext& context, const PrefixKeys& prefix) const {
  if (prefix.k_GPK.defined()) return attend_with_prefix(heads, context.mask, prefix);
  if (context.segments.by_bounds()) return ops::attention_by_bounds(heads, context.segments.bounds, context.segments.longest);
  const bool plain_causal = context.cache == nullptr && !context.mask.defined() && context.causal;
  if (plain_causal) return ops::causal_attention(heads, context.fast.fused_attention);
  if (context.cache != nullptr) {
    std::tie(heads.k_BGSK, heads.v_BGSK) = context.cache->append(layer_, heads.k_BGSK, heads.v_BGSK);
    const bool after_others = heads.k_BGSK.size(2) > heads.q_BHSK.size(2) || !context.causal;
    if (!context.mask.defined() && after_others) return ops::attend_to_cache(heads, context.fast.fused_attention);
  }
  return masked_attention(heads, context.mask, context.causal);
}

LlamaMlpImpl::LlamaMlpImpl(const LlamaConfig& config, const nn::ParameterOptions& parameters) {
  const int64_t hidden = config.hidden_size, inner = config.intermediate_size;
  gate_proj = register_module("gate_proj", linear(hidden, inner, config.mlp_bias, parameters));
  up_proj = register_module("up_proj", linear(hidden, inner, config.mlp_bias, parameters));
  down_proj = register_module("down_proj", linear(inner, hidden, config.mlp_bias, parameters));
  gate_up_ = nn::LinearGroup({gate_proj, up_proj});
  down_ = nn::LinearGroup({down_proj});
}

Tensor LlamaMlpImpl::forward(const Tensor& x_BSD, const nn::FastPaths& fast) {
  return down_.forward(ops::swiglu_joined(gate_up_.forward(x_BSD, fast), fast.fused_swiglu), fast);
}

bool LlamaMlpImpl::keeps_rows_apart(at::ScalarType dtype, const nn::FastPaths& fast) const {
  return fast.fused_swiglu && gate_up_.keeps_rows_apart(dtype, fast) && down_.keeps_rows_apart(dtype, fast);
}

LlamaDecoderLayerImpl::LlamaDecoderLayerImpl(const LlamaConfig& config, int64_t layer, const nn::ParameterOptions& parameters) {
  input_layernorm = register_module("input_layernorm", nn::RmsNorm(config.hidden_size, config.rms_norm_eps, parameters));
  self_attn = register_module("self_attn", LlamaAttention(config, layer, parameters));
  post_attention_layernorm =
      register_module("post_attention_layernorm", nn::RmsNorm(config.hidden_size, config.rms_norm_eps, parameters));
  mlp = register_module("mlp", LlamaMlp(config, parameters));
  attention_adapters = register_module("attention_adapters", nn::BlockOutput(config.hidden_size));
  output_adapters = register_module("output_adapters", nn::BlockOutput(config.hidden_size));
}

Residual LlamaDecoderLayerImpl::forward(const Residual& stream, const AttentionContext& context, const PrefixKeys& prefix) {
  const auto [x_BSD, normed_BSD] = input_layernorm->forward_sum(stream.x_BSD, stream.pending_BSD, context.fast);
  const Residual attended{x_BSD, attention_adapters->forward(self_attn->forward(normed_BSD, context, prefix), x_BSD)};
  if (context.recompute != nn::Recompute::kSelective) return feed_forward(attended, context.fast);
  return nn::recomputed(attended, context, {}, [this, fast = context.fast](const Residual& half, const PrefixKeys&) {
    return feed_forward(half, fast);
  });
}

Residual LlamaDecoderLayerImpl::feed_forward(const Residual& stream, const nn::FastPaths& fast) {
  const auto [x_BSD, normed_BSD] = post_attention_layernorm->forward_sum(stream.x_BSD, stream.pending_BSD, fast);
  return {x_BSD, output_adapters->forward(mlp->forward(normed_BSD, fast), x_BSD)};
}

LlamaModelImpl::LlamaModelImpl(const LlamaConfig& config, const nn::ParameterOptions& parameters)
    : max_positions_(config.max_position_embeddings), rotary_(config.head_dim, config.rope_theta) {
  embed_tokens =
      register_module("embed_tokens", nn::Embedding(nn::EmbeddingOptions{config.vocab_size, config.hidden_size, parameters}));
  layers = register_module("layers", torch::nn::ModuleList());
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) layers->push_back(LlamaDecoderLayer(config, i, parameters));
  norm = register_module("norm", nn::RmsNorm(config.hidden_size, config.rms_norm_eps, parameters));
}

nn::PredictingStates LlamaModelImpl::forward(const Batch& given, nn::KvCache* cache, const nn::FastPaths& fast,
                                             nn::Recompute recompute, const std::shared_ptr<nn::ActivationStore>& activations,
                                             const nn::PromptSlotImpl* prompts) {
  const at::Device device = given.input_ids_BS.device();
  const auto dtype = compute_dtype(device.type(), embed_tokens->weight.scalar_type());
  if (!given.segment_lengths.empty()) nn::check_packed(given, cache, "llama");

  const nn::VirtualTokens tokens = nn::virtual_tokens(prompts, cache, dtype);
  if (cache != nullptr) nn::fill(*cache, tokens.by_layer, given.input_ids_BS.size(0));
  nn::Prompted prompted{given, embed_tokens->forward(given.input_ids_BS)};
  const int64_t num_embedded = tokens.embeddings_PD.defined() ? tokens.embeddings_PD.size(0) : 0;
  if (num_embedded > 0) prompted = nn::with_embeddings(given, prompted.x_BSD, tokens.embeddings_PD);
  const Batch& batch = prompted.batch;

  AttentionContext context;
  context.num_prefixed = cache == nullptr ? tokens.prefixed() : 0;
  context.joined = fast.fused_rotary && fast.fused_attention && cache == nullptr && !batch.attention_mask_BS.defined() &&
                   context.num_prefixed == 0 && ops::attends_joined(device, dtype);
  const auto& lengths = batch.segment_lengths;
  if (!lengths.empty()) {
    const bool by_bounds = context.num_prefixed == 0 && ops::attends_by_bounds(device, dtype, rotary_.head_dim());
    context.segments = context.joined ? ops::lengths_of(lengths)
                       : by_bounds    ? ops::bounds_of(lengths, device)
                                      : ops::segments_of(lengths, device);
  }
  const int64_t length = lengths.empty() ? batch.input_ids_BS.size(1) : context.segments.longest;
  const int64_t num_virtual = cache != nullptr ? cache->virtual_tokens() : context.num_prefixed;
  const int64_t first = num_virtual + (cache != nullptr ? cache->length() : 0);
  require<ShapeError>(first + length <= max_positions_,
                      "[llama] a sequence must fit the model's {} positions, virtual tokens included; found {}; shorten the rows "
                      "or use a model with a longer context",
                      max_positions_, first + length);
  std::tie(context.cos, context.sin) =
      rotary_.at(positions_of(batch, context.segments, first, num_virtual, length, cache != nullptr));
  context.mask = attention_mask(batch, cache, context.num_prefixed, table_length(context.segments, length));
  context.causal = length > 1;
  context.cache = cache;
  context.fast = fast;
  context.recompute = recompute;
  context.activations = activations;

  const Residual stream = nn::through_layers<LlamaDecoderLayerImpl>(layers, {prompted.x_BSD, Tensor()}, context, tokens.by_layer);
  if (cache != nullptr) {
    cache->advance_virtual(num_embedded);
    cache->advance(length - num_embedded);
  }
  return nn::taken_apart(norm->forward_sum(stream.x_BSD, stream.pending_BSD, fast).second, prompted, num_embedded);
}

bool LlamaModelImpl::keeps_rows_apart(const nn::FastPaths& fast) const {
  const auto dtype = embed_tokens->weight.scalar_type();
  if (!fast.fused_norm || !embed_tokens->slot.contributing().empty() || nn::rows_are_chosen(embed_tokens->slot)) return false;
  return std::all_of(layers->begin(), layers->end(), [&](const auto& module) {
    const auto* layer = module->template as<LlamaDecoderLayerImpl>();
    if (!layer->attention_adapters->slot.contributing().empty() || !layer->output_adapters->slot.contributing().empty())
      return false;
    return layer->self_attn->keeps_rows_apart(dtype, fast) && layer->mlp->keeps_rows_apart(dtype, fast);
  });
}

LlamaForCausalLMImpl::LlamaForCausalLMImpl(const LlamaConfig& config_, const nn::ParameterOptions& parameters) : config(config_) {
  // The layers' own initialisation would draw every weight once in vain; this model has its rule.
  nn::ParameterOptions uninitialized = parameters;
  uninitialized.initialize = false;
  model = register_module("model", LlamaModel(config, uninitialized));
  nn::ParameterOptions resident = uninitialized;
  resident.allocate = true;
  resident.quantization = std::nullopt;
  lm_head = register_module("lm_head", linear(config.hidden_size, config.vocab_size, false, resident));
  if (config.tie_word_embeddings) lm_head->tie_weight(model->embed_tokens->weight);
  head_group_ = nn::LinearGroup({lm_head});
  if (parameters.initialize) nn::initialize(*this, config.initializer_range, config.tie_word_embeddings ? "lm_head.weight" : "");
}

void LlamaForCausalLMImpl::untie_head() {
  if (!config.tie_word_embeddings) return;
  config.tie_word_embeddings = false;
  lm_head->untie_weight();
}

Tensor LlamaForCausalLMImpl::hidden(const Batch& batch, nn::KvCache* cache) {
  return model->forward(batch, cache, fast_paths, recompute, activations, prompts().get()).hidden_BSD;
}

nn::PredictingStates LlamaForCausalLMImpl::predicting_states(const Batch& batch) {
  return model->forward(batch, nullptr, fast_paths, recompute, activations, prompts().get());
}

std::optional<nn::PromptShape> LlamaForCausalLMImpl::prompt_shape() const {
  return nn::PromptShape{config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads, config.head_dim,
                         config.hidden_size};
}

at::ScalarType LlamaForCausalLMImpl::stored_dtype() const { return io::to_torch(config.dtype, "model.dtype"); }

int64_t LlamaForCausalLMImpl::independent_rows() {
  const auto dtype = model->embed_tokens->weight.scalar_type();
  const bool apart = model->keeps_rows_apart(fast_paths) && head_group_.keeps_rows_apart(dtype, fast_paths) &&
                     compute_dtype(at::kCPU, dtype) == dtype;
  return apart ? ops::rows::kFewRows : 1;
}

}  // namespace lora::llama
