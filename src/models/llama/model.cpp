#include "lora/models/llama/model.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "core/check.h"
#include "lora/ops/autocast.h"
#include "lora/ops/ops.h"
#include "ops/rows.h"

namespace lora::llama {
namespace {

nn::Linear linear(int64_t in, int64_t out, bool bias, const nn::ParameterOptions& parameters) {
  return nn::Linear(nn::LinearOptions{in, out, bias, parameters});
}

/// Which keys each new token may look at, (B or 1, 1, S, cached + S); undefined when their order says it all.
Tensor attention_mask(const Batch& batch, const nn::KvCache* cache) {
  if (!batch.attention_mask_BS.defined()) return {};
  const int64_t length = batch.input_ids_BS.size(1);
  const int64_t cached = cache != nullptr ? cache->length() : 0;
  const auto options = batch.input_ids_BS.options().dtype(at::kBool);
  const Tensor causal = at::ones({length, cached + length}, options).tril(cached);
  require<ShapeError>(batch.attention_mask_BS.size(1) == cached + length,
                      "[llama] the attention mask must cover {} positions; found {}", cached + length,
                      batch.attention_mask_BS.size(1));
  const Tensor seen = at::logical_and(causal, batch.attention_mask_BS.to(at::kBool).unsqueeze(1).unsqueeze(1));
  // A position that may look at nothing (padding on the left) looks at itself: numbers, not NaN.
  const Tensor itself = at::ones({length, cached + length}, options).tril(cached).triu(cached);
  const Tensor sees_nothing = seen.any(-1, /*keepdim=*/true).logical_not();
  return at::logical_or(seen, at::logical_and(itself, sees_nothing));
}

/// A packed batch is one row of sequences, for training.
void check_packed(const Batch& batch, const nn::KvCache* cache) {
  const auto& lengths = batch.segment_lengths;
  const int64_t tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  const bool positive = std::all_of(lengths.begin(), lengths.end(), [](int64_t length) { return length > 0; });
  require<ShapeError>(positive && batch.input_ids_BS.size(0) == 1 && tokens == batch.input_ids_BS.size(1),
                      "[llama] a packed batch must be one row whose segment lengths are positive and add up to it; found {} "
                      "rows of {} tokens and segments of {} in all", batch.input_ids_BS.size(0), batch.input_ids_BS.size(1), tokens);
  require<ShapeError>(cache == nullptr && !batch.attention_mask_BS.defined() && !batch.position_ids_BS.defined(),
                      "[llama] a packed batch must have no cache, mask or position ids: its segments say it all");
}

/// Rotary tables reach to the padded length of the longest class.
int64_t table_length(const ops::Segments& segments, int64_t length) {
  for (const auto& one : segments.classes) length = std::max(length, one.length);
  return length;
}

/// (B or 1, S): what rotary tables are made for.
Tensor positions_of(const Batch& batch, const ops::Segments& segments, int64_t cached, int64_t length) {
  if (batch.position_ids_BS.defined()) return batch.position_ids_BS;
  if (segments.by_bounds()) return segments.position_1N;
  return at::arange(cached, cached + table_length(segments, length), batch.input_ids_BS.options()).unsqueeze(0);
}

/// nn::recomputed for a part of the stream.
template <class Body>
Residual recomputed(const Residual& stream, const AttentionContext& context, Body body) {
  std::vector<Tensor> inputs = {stream.x_BSD};
  if (stream.pending_BSD.defined()) inputs.push_back(stream.pending_BSD);
  const auto outputs = nn::recomputed(
      [body](const std::vector<Tensor>& given) {
        const Residual result = body(Residual{given[0], given.size() > 1 ? given[1] : Tensor()});
        return std::vector<Tensor>{result.x_BSD, result.pending_BSD};
      },
      inputs, context.activations);
  return {outputs[0], outputs[1]};
}

/// The layers that keep their weights in few bits, by their parameters.
std::map<const at::TensorImpl*, nn::LinearImpl*> layers_in_few_bits(LlamaForCausalLMImpl& model) {
  std::map<const at::TensorImpl*, nn::LinearImpl*> layers;
  for (const auto& module : model.modules(/*include_self=*/false)) {
    auto* linear = module->as<nn::LinearImpl>();
    if (linear != nullptr && linear->options.parameters.quantization) layers.emplace(linear->weight.unsafeGetTensorImpl(), linear);
  }
  return layers;
}

/// Hugging Face's rule for fresh weights: norms one, biases zero, everything else normal. Weights in few bits are those of
/// a plain model, drawn and quantised one by one.
void initialize(LlamaForCausalLMImpl& model) {
  const torch::NoGradGuard no_grad;
  const auto in_few_bits = layers_in_few_bits(model);
  for (auto& entry : model.named_parameters()) {
    const auto layer = in_few_bits.find(entry.value().unsafeGetTensorImpl());
    if (layer != in_few_bits.end()) {
      const Tensor drawn = at::empty(entry.value().sizes(), entry.value().options()).normal_(0, model.config.initializer_range);
      layer->second->quantize_weight(ops::QuantizedTensor::quantize(drawn, *layer->second->options.parameters.quantization));
      continue;
    }
    const bool is_tied_twin = entry.key() == "lm_head.weight" && model.config.tie_word_embeddings;
    if (entry.key().ends_with("norm.weight")) {
      entry.value().fill_(1);
    } else if (entry.key().ends_with(".bias")) {
      entry.value().zero_();
    } else if (!is_tied_twin) {
      entry.value().normal_(0, model.config.initializer_range);
    }
  }
}

}  // namespace

LlamaAttentionImpl::LlamaAttentionImpl(const LlamaConfig& config, int64_t layer,
                                       const nn::ParameterOptions& parameters)
    : layer_(layer),
      num_heads_(config.num_attention_heads),
      num_kv_heads_(config.num_key_value_heads),
      head_dim_(config.head_dim) {
  const int64_t hidden = config.hidden_size;
  const bool bias = config.attention_bias;
  q_proj = register_module("q_proj", linear(hidden, num_heads_ * head_dim_, bias, parameters));
  k_proj = register_module("k_proj", linear(hidden, num_kv_heads_ * head_dim_, bias, parameters));
  v_proj = register_module("v_proj", linear(hidden, num_kv_heads_ * head_dim_, bias, parameters));
  o_proj = register_module("o_proj", linear(num_heads_ * head_dim_, hidden, bias, parameters));
  qkv_ = nn::LinearGroup({q_proj, k_proj, v_proj});
  o_ = nn::LinearGroup({o_proj});
}

Tensor LlamaAttentionImpl::forward(const Tensor& x_BSD, const AttentionContext& context) {
  const Tensor qkv = qkv_.forward(x_BSD, context.fast);
  if (context.joined) {
    return o_.forward(ops::joined_attention(qkv, context.cos, context.sin, num_heads_, num_kv_heads_, context.segments.lengths),
                      context.fast);
  }
  if (context.segments.by_class()) return o_.forward(attend_within_segments(qkv, context), context.fast);
  const auto heads = ops::split_rotated(qkv, context.cos, context.sin, num_heads_, num_kv_heads_, context.fast.fused_rotary);
  return o_.forward(attend(heads, context), context.fast);
}

bool LlamaAttentionImpl::keeps_rows_apart(at::ScalarType dtype, const nn::FastPaths& fast) const {
  return fast.fused_rotary && fast.fused_attention && qkv_.keeps_rows_apart(dtype, fast) && o_.keeps_rows_apart(dtype, fast);
}

/// Each class of sequences is a batch of its own.
Tensor LlamaAttentionImpl::attend_within_segments(const Tensor& qkv, const AttentionContext& context) const {
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
    seen.push_back(ops::causal_attention(heads, context.fast.fused_attention).reshape({-1, num_heads_ * head_dim_}));
  }
  return ops::taken_back(at::cat(seen), context.segments).view({qkv.size(0), qkv.size(1), -1});
}

/// (B, S, H K). Only plain causal attention has a fast form.
Tensor LlamaAttentionImpl::attend(ops::Heads heads, const AttentionContext& context) const {
  if (context.segments.by_bounds()) return ops::attention_by_bounds(heads, context.segments.bounds, context.segments.longest);
  const bool plain_causal = context.cache == nullptr && !context.mask.defined() && context.causal;
  if (plain_causal) return ops::causal_attention(heads, context.fast.fused_attention);
  if (context.cache != nullptr) {
    std::tie(heads.k_BGSK, heads.v_BGSK) = context.cache->append(layer_, heads.k_BGSK, heads.v_BGSK);
    const bool after_others = heads.k_BGSK.size(2) > heads.q_BHSK.size(2) || !context.causal;
    if (!context.mask.defined() && after_others) return ops::attend_to_cache(heads, context.fast.fused_attention);
  }
  const std::optional<Tensor> mask = context.mask.defined() ? std::optional(context.mask) : std::nullopt;
  const Tensor seen_BHSK = at::scaled_dot_product_attention(
      heads.q_BHSK, ops::repeat_heads(heads.k_BGSK, num_heads_), ops::repeat_heads(heads.v_BGSK, num_heads_), mask,
      /*dropout_p=*/0.0, /*is_causal=*/!mask && context.causal);
  return seen_BHSK.transpose(1, 2).reshape({seen_BHSK.size(0), seen_BHSK.size(2), num_heads_ * head_dim_});
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

LlamaDecoderLayerImpl::LlamaDecoderLayerImpl(const LlamaConfig& config, int64_t layer,
                                             const nn::ParameterOptions& parameters) {
  input_layernorm = register_module("input_layernorm",
                                    nn::RmsNorm(config.hidden_size, config.rms_norm_eps, parameters));
  self_attn = register_module("self_attn", LlamaAttention(config, layer, parameters));
  post_attention_layernorm = register_module("post_attention_layernorm",
                                             nn::RmsNorm(config.hidden_size, config.rms_norm_eps, parameters));
  mlp = register_module("mlp", LlamaMlp(config, parameters));
}

Residual LlamaDecoderLayerImpl::forward(const Residual& stream, const AttentionContext& context) {
  const auto [x_BSD, normed_BSD] = input_layernorm->forward_sum(stream.x_BSD, stream.pending_BSD, context.fast);
  const Residual attended{x_BSD, self_attn->forward(normed_BSD, context)};
  if (context.recompute != nn::Recompute::kSelective) return feed_forward(attended, context.fast);
  return recomputed(attended, context, [this, fast = context.fast](const Residual& half) { return feed_forward(half, fast); });
}

Residual LlamaDecoderLayerImpl::feed_forward(const Residual& stream, const nn::FastPaths& fast) {
  const auto [x_BSD, normed_BSD] = post_attention_layernorm->forward_sum(stream.x_BSD, stream.pending_BSD, fast);
  return {x_BSD, mlp->forward(normed_BSD, fast)};
}

LlamaModelImpl::LlamaModelImpl(const LlamaConfig& config, const nn::ParameterOptions& parameters)
    : max_positions_(config.max_position_embeddings), rotary_(config.head_dim, config.rope_theta) {
  embed_tokens = register_module(
      "embed_tokens", nn::Embedding(nn::EmbeddingOptions{config.vocab_size, config.hidden_size, parameters}));
  layers = register_module("layers", torch::nn::ModuleList());
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) layers->push_back(LlamaDecoderLayer(config, i, parameters));
  norm = register_module("norm", nn::RmsNorm(config.hidden_size, config.rms_norm_eps, parameters));
}

Tensor LlamaModelImpl::forward(const Batch& batch, nn::KvCache* cache, const nn::FastPaths& fast,
                               nn::Recompute recompute, const std::shared_ptr<nn::ActivationStore>& activations) {
  AttentionContext context;
  const at::Device device = batch.input_ids_BS.device();
  const auto dtype = compute_dtype(device.type(), embed_tokens->weight.scalar_type());
  context.joined = fast.fused_rotary && fast.fused_attention && cache == nullptr && !batch.attention_mask_BS.defined() &&
                   ops::attends_joined(device, dtype);
  const auto& lengths = batch.segment_lengths;
  if (!lengths.empty()) {
    check_packed(batch, cache);
    const bool by_bounds = ops::attends_by_bounds(device, dtype, rotary_.head_dim());
    context.segments = context.joined ? ops::lengths_of(lengths)
                       : by_bounds    ? ops::bounds_of(lengths, device)
                                      : ops::segments_of(lengths, device);
  }
  const int64_t length = lengths.empty() ? batch.input_ids_BS.size(1) : context.segments.longest;
  const int64_t cached = cache != nullptr ? cache->length() : 0;
  require<ShapeError>(cached + length <= max_positions_,
                      "[llama] a sequence must fit the model's {} positions; found {}; shorten the rows or use a model "
                      "with a longer context",
                      max_positions_, cached + length);
  std::tie(context.cos, context.sin) = rotary_.at(positions_of(batch, context.segments, cached, length));
  context.mask = attention_mask(batch, cache);
  context.causal = length > 1;
  context.cache = cache;
  context.fast = fast;
  context.recompute = recompute;
  context.activations = activations;

  Residual stream{embed_tokens->forward(batch.input_ids_BS), Tensor()};
  for (const auto& module : *layers) {
    auto* layer = module->as<LlamaDecoderLayerImpl>();
    if (recompute == nn::Recompute::kFull) {
      stream = recomputed(stream, context, [layer, context](const Residual& part) { return layer->forward(part, context); });
    } else {
      stream = layer->forward(stream, context);
    }
  }
  if (cache != nullptr) cache->advance(length);
  return norm->forward_sum(stream.x_BSD, stream.pending_BSD, fast).second;
}

bool LlamaModelImpl::keeps_rows_apart(const nn::FastPaths& fast) const {
  const auto dtype = embed_tokens->weight.scalar_type();
  if (!fast.fused_norm || !embed_tokens->slot.contributing().empty()) return false;
  return std::all_of(layers->begin(), layers->end(), [&](const auto& module) {
    const auto* layer = module->template as<LlamaDecoderLayerImpl>();
    return layer->self_attn->keeps_rows_apart(dtype, fast) && layer->mlp->keeps_rows_apart(dtype, fast);
  });
}

LlamaForCausalLMImpl::LlamaForCausalLMImpl(const LlamaConfig& config_, const nn::ParameterOptions& parameters)
    : config(config_) {
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
  if (parameters.initialize) initialize(*this);
}

Tensor LlamaForCausalLMImpl::hidden(const Batch& batch, nn::KvCache* cache) {
  return model->forward(batch, cache, fast_paths, recompute, activations);
}

int64_t LlamaForCausalLMImpl::independent_rows() {
  const auto dtype = model->embed_tokens->weight.scalar_type();
  const bool apart = model->keeps_rows_apart(fast_paths) && head_group_.keeps_rows_apart(dtype, fast_paths) &&
                     compute_dtype(at::kCPU, dtype) == dtype;
  return apart ? ops::rows::kFewRows : 1;
}

}  // namespace lora::llama
