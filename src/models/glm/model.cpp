#include "lora/models/glm/model.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "lora/io/dtype.h"
#include "lora/nn/row_adapters.h"
#include "lora/ops/autocast.h"
#include "models/glm/heads.h"
#include "models/glm/positions.h"
#include "nn/decoder_pass.h"
#include "ops/rows.h"

namespace lora::glm {
namespace {

constexpr double kRotaryBase = 10000;

nn::Linear linear(int64_t in, int64_t out, const nn::ParameterOptions& parameters) {
  return nn::Linear(nn::LinearOptions{in, out, /*bias=*/true, parameters});
}

double residual_scale(const GlmConfig& config) { return std::sqrt(2.0 * static_cast<double>(config.residual_alpha_layers)); }

/// Rows that hold a prefix's keys and values, and queries that nobody reads, before those of each sequence: what all tokens
/// see is then one context.
Tensor with_prefix_rows(const Tensor& qkv_BSW, const nn::PrefixKeys& prefix, const AttentionContext& context) {
  const auto flat = [&](const Tensor& x_HPK) { return x_HPK.to(qkv_BSW.scalar_type()).transpose(0, 1).flatten(1); };
  const Tensor keys_PD = flat(prefix.k_GPK);
  const Tensor rows_PW = at::cat({at::zeros_like(keys_PD), keys_PD, flat(prefix.v_GPK)}, 1);
  if (context.source_N.defined()) return at::cat({rows_PW, qkv_BSW.squeeze(0)}).index_select(0, context.source_N).unsqueeze(0);
  return at::cat({rows_PW.unsqueeze(0).expand({qkv_BSW.size(0), -1, -1}), qkv_BSW}, 1);
}

Tensor without_prefix_rows(const Tensor& x_BSD, const AttentionContext& context) {
  if (context.num_prefixed == 0) return x_BSD;
  return context.real_N.defined() ? x_BSD.index_select(1, context.real_N) : x_BSD.slice(1, context.num_prefixed);
}

/// Each sequence of a packed row by itself.
Tensor attend_one_by_one(const ops::Heads& heads, const AttentionContext& context) {
  std::vector<Tensor> parts;
  int64_t begin = 0;
  for (size_t i = 0; i < context.lengths.size(); ++i) {
    const int64_t length = context.lengths[i];
    const auto own = [&](const Tensor& x) { return x.narrow(2, begin, length); };
    parts.push_back(ops::causal_attention({own(heads.q_BHSK), own(heads.k_BGSK), own(heads.v_BGSK)}, context.fast.fused_attention,
                                          {context.contexts[i]}));
    begin += length;
  }
  return at::cat(parts, 1);
}

Tensor masked_attention(const ops::Heads& heads, const Tensor& mask) {
  return at::scaled_dot_product_attention(heads.q_BHSK, heads.k_BGSK, heads.v_BGSK, mask).transpose(1, 2).flatten(2);
}

/// Which keys the places `first` to `first` + length see of all before them and themselves, (B, 1, S, T): the context, what
/// stands before, and themselves, less what is padding. `virtual_columns` stand before and are seen by all.
Tensor attention_mask(const std::vector<int64_t>& contexts, const Tensor& real_BT, int64_t first, int64_t length,
                      int64_t virtual_columns, const at::Device& device) {
  const auto options = at::TensorOptions(device).dtype(at::kLong);
  const Tensor key_T = at::arange(first + length, options), query_S1 = at::arange(first, first + length, options).unsqueeze(1);
  const Tensor context_B111 = at::tensor(contexts, at::kLong).to(device).view({-1, 1, 1, 1});
  Tensor seen = at::logical_or(key_T <= query_S1, key_T < context_B111);
  if (real_BT.defined()) {
    require<ShapeError>(real_BT.size(1) == first + length, "[glm] the attention mask must cover {} positions; found {}",
                        first + length, real_BT.size(1));
    seen = at::logical_and(seen, real_BT.to(at::kBool).unsqueeze(1).unsqueeze(1));
    // A position that may look at nothing (padding on the left) looks at itself: numbers, not NaN.
    seen = at::logical_or(seen, at::logical_and(key_T == query_S1, seen.any(-1, /*keepdim=*/true).logical_not()));
  }
  return nn::with_virtual_columns(seen, virtual_columns);
}

/// What is known of the batch's sequences: found in its tokens, or noted in the cache by the pass that brought the prompts.
std::shared_ptr<const PromptNotes> notes_of(const Batch& batch, nn::KvCache* cache, const GlmConfig& config,
                                            int64_t num_embedded) {
  if (cache == nullptr || cache->length() == 0) {
    auto notes = std::make_shared<PromptNotes>();
    notes->places = prompt_places(batch, config);
    notes->num_embedded = num_embedded;
    if (cache != nullptr) cache->notes = notes;
    return notes;
  }
  auto notes = std::dynamic_pointer_cast<const PromptNotes>(cache->notes);
  require<ShapeError>(notes && static_cast<int64_t>(notes->places.size()) == batch.input_ids_BS.size(0),
                      "[glm] a cache must come from a pass over the prompts of the same {} rows; found another one",
                      batch.input_ids_BS.size(0));
  for (const PromptPlace& place : notes->places) {
    require<ShapeError>(cache->length() >= place.end(),
                        "[glm] a cache must hold the whole prompt, whose tokens see each other; found "
                        "{} of {} positions; cut it back to 0 and begin anew",
                        cache->length(), place.end());
  }
  return notes;
}

void check_length(const GlmConfig& config, int64_t length) {
  require<ShapeError>(
      length <= config.max_sequence_length,
      "[glm] a sequence must fit the model's {} positions, embeddings of virtual tokens included; found {}; shorten the "
      "rows",
      config.max_sequence_length, length);
}

}  // namespace

GlmAttentionImpl::GlmAttentionImpl(const GlmConfig& config, int64_t layer, const nn::ParameterOptions& parameters)
    : layer_(layer), num_heads_(config.num_attention_heads) {
  const int64_t hidden = config.hidden_size;
  query_key_value = register_module("query_key_value", linear(hidden, 3 * hidden, parameters));
  dense = register_module("dense", linear(hidden, hidden, parameters));
  qkv_ = nn::LinearGroup({query_key_value});
  dense_ = nn::LinearGroup({dense});
}

Tensor GlmAttentionImpl::forward(const Tensor& x_BSD, const AttentionContext& context, const nn::PrefixKeys& prefix) {
  Tensor qkv = heads_apart(qkv_.forward(x_BSD, context.fast), num_heads_);
  if (prefix.k_GPK.defined()) qkv = with_prefix_rows(qkv, prefix, context);
  const Tensor attended =
      context.joined
          ? ops::joined_attention(qkv, context.cos, context.sin, num_heads_, num_heads_, context.lengths, context.contexts)
          : attend(ops::split_rotated(qkv, context.cos, context.sin, num_heads_, num_heads_, context.fast.fused_rotary), context);
  return dense_.forward(without_prefix_rows(attended, context), context.fast);
}

bool GlmAttentionImpl::keeps_rows_apart(at::ScalarType dtype, const nn::FastPaths& fast) const {
  return fast.fused_rotary && fast.fused_attention && qkv_.keeps_rows_apart(dtype, fast) && dense_.keeps_rows_apart(dtype, fast);
}

nn::RowsByPart GlmAttentionImpl::rows_by_part(const std::string& child) const {
  if (child != "query_key_value") return {};
  const char* const parts[] = {"q", "k", "v"};
  const int64_t head_dim = query_key_value->options.out_features / (3 * num_heads_);
  nn::RowsByPart rows;
  for (int64_t row = 0; row < query_key_value->options.out_features; ++row) rows[parts[row / head_dim % 3]].push_back(row);
  return rows;
}

/// (B, S, H K).
Tensor GlmAttentionImpl::attend(ops::Heads heads, const AttentionContext& context) const {
  const bool is_first = context.cache == nullptr || context.cache->length() == 0;
  if (context.cache != nullptr) {
    std::tie(heads.k_BGSK, heads.v_BGSK) = context.cache->append(layer_, heads.k_BGSK, heads.v_BGSK);
  }
  if (context.mask.defined()) return masked_attention(heads, context.mask);
  if (context.shared.longest > 0) return ops::prefix_attention(heads, context.shared);
  if (!is_first) return ops::attend_to_cache(heads, context.fast.fused_attention);
  if (!context.lengths.empty()) return attend_one_by_one(heads, context);
  return ops::causal_attention(heads, context.fast.fused_attention, context.contexts);
}

GlmMlpImpl::GlmMlpImpl(const GlmConfig& config, const nn::ParameterOptions& parameters) {
  const int64_t hidden = config.hidden_size, inner = config.inner_hidden_size;
  dense_h_to_4h = register_module("dense_h_to_4h", linear(hidden, inner, parameters));
  dense_4h_to_h = register_module("dense_4h_to_h", linear(inner, hidden, parameters));
  up_ = nn::LinearGroup({dense_h_to_4h});
  down_ = nn::LinearGroup({dense_4h_to_h});
}

Tensor GlmMlpImpl::forward(const Tensor& x_BSD, const nn::FastPaths& fast) {
  // The switch of the feed-forward block's activation is named after Llama's.
  return down_.forward(ops::gelu_tanh(up_.forward(x_BSD, fast), fast.fused_swiglu), fast);
}

bool GlmMlpImpl::keeps_rows_apart(at::ScalarType dtype, const nn::FastPaths& fast) const {
  return fast.fused_swiglu && up_.keeps_rows_apart(dtype, fast) && down_.keeps_rows_apart(dtype, fast);
}

GlmLayerImpl::GlmLayerImpl(const GlmConfig& config, int64_t layer, const nn::ParameterOptions& parameters)
    : alpha_(residual_scale(config)) {
  input_layernorm = register_module("input_layernorm", nn::LayerNorm(config.hidden_size, config.layernorm_epsilon, parameters));
  attention = register_module("attention", GlmAttention(config, layer, parameters));
  post_attention_layernorm =
      register_module("post_attention_layernorm", nn::LayerNorm(config.hidden_size, config.layernorm_epsilon, parameters));
  mlp = register_module("mlp", GlmMlp(config, parameters));
  attention_adapters = register_module("attention_adapters", nn::BlockOutput(config.hidden_size));
  output_adapters = register_module("output_adapters", nn::BlockOutput(config.hidden_size));
}

/// What a bottleneck adapter sees as the stream is what the block's output is added to.
Tensor GlmLayerImpl::adapted(nn::BlockOutput& adapters, const Tensor& out_BSD, const Tensor& normed_BSD) const {
  return adapters->slot.contributing().empty() ? out_BSD : adapters->forward(out_BSD, normed_BSD * alpha_);
}

Residual GlmLayerImpl::forward(const Residual& stream, const AttentionContext& context, const nn::PrefixKeys& prefix) {
  const Tensor normed_BSD = input_layernorm->forward_sum(stream.x_BSD, stream.pending_BSD, alpha_, context.fast);
  const Residual attended{normed_BSD, adapted(attention_adapters, attention->forward(normed_BSD, context, prefix), normed_BSD)};
  if (context.recompute != nn::Recompute::kSelective) return feed_forward(attended, context.fast);
  return nn::recomputed(attended, context, {}, [this, fast = context.fast](const Residual& half, const nn::PrefixKeys&) {
    return feed_forward(half, fast);
  });
}

Residual GlmLayerImpl::feed_forward(const Residual& stream, const nn::FastPaths& fast) {
  const Tensor normed_BSD = post_attention_layernorm->forward_sum(stream.x_BSD, stream.pending_BSD, alpha_, fast);
  return {normed_BSD, adapted(output_adapters, mlp->forward(normed_BSD, fast), normed_BSD)};
}

GlmModelImpl::GlmModelImpl(const GlmConfig& config, const nn::ParameterOptions& parameters)
    : config_(config), rotary_(config.head_dim() / 2, kRotaryBase, config.rope_inv_freq_dtype == DType::kF16) {
  word_embeddings =
      register_module("word_embeddings", nn::Embedding(nn::EmbeddingOptions{config.vocab_size, config.hidden_size, parameters}));
  layers = register_module("layers", torch::nn::ModuleList());
  for (int64_t i = 0; i < config.num_layers; ++i) layers->push_back(GlmLayer(config, i, parameters));
  final_layernorm = register_module("final_layernorm", nn::LayerNorm(config.hidden_size, config.layernorm_epsilon, parameters));
}

nn::PredictingStates GlmModelImpl::forward(const Batch& given, nn::KvCache* cache, const nn::FastPaths& fast,
                                           nn::Recompute recompute, const std::shared_ptr<nn::ActivationStore>& activations,
                                           const nn::PromptSlotImpl* prompts) {
  const at::Device device = given.input_ids_BS.device();
  const auto dtype = compute_dtype(device.type(), word_embeddings->weight.scalar_type());
  if (!given.segment_lengths.empty()) nn::check_packed(given, cache, "glm");
  require<ShapeError>(!given.position_ids_BS.defined(),
                      "[glm] positions follow from <sop> and [gMASK]; found others in the batch");

  nn::VirtualTokens tokens = nn::virtual_tokens(prompts, cache, dtype);
  for (nn::PrefixKeys& keys : tokens.by_layer) keys.k_GPK = in_pairs(keys.k_GPK);
  const auto notes = notes_of(given, cache, config_, tokens.embedded());
  if (cache != nullptr) nn::fill(*cache, tokens.by_layer, given.input_ids_BS.size(0));
  nn::Prompted prompted{given, word_embeddings->forward(given.input_ids_BS)};
  if (tokens.embedded() > 0) prompted = nn::with_embeddings(given, prompted.x_BSD, tokens.embeddings_PD);

  AttentionContext context;
  context.num_prefixed = cache == nullptr ? tokens.prefixed() : 0;
  context.lengths = prompted.batch.segment_lengths;
  const int64_t length = given.input_ids_BS.size(1), first = cache != nullptr ? cache->length() : 0;
  const int64_t longest = given.segment_lengths.empty() ? first + length : *std::ranges::max_element(given.segment_lengths);
  check_length(config_, notes->num_embedded + longest);
  if (context.num_prefixed > 0 && !context.lengths.empty()) {
    const auto places = nn::interleaved(context.lengths, context.num_prefixed, device);
    context.lengths = places.lengths;
    context.source_N = places.source_N;
    context.real_N = places.real_N;
  }

  const auto [sequence_BS, answer_BS] = positions_of(notes->places, first, length, given.segment_lengths,
                                                     {context.num_prefixed, tokens.embedded()}, notes->num_embedded, device);
  const auto [cos, sin] = rotary_.at(sequence_BS);
  const auto [answer_cos, answer_sin] = rotary_.at(answer_BS);
  context.cos = at::cat({cos, answer_cos}, -1);
  context.sin = at::cat({sin, answer_sin}, -1);

  // Places of this pass that are no tokens, and stand in their rows before them.
  const int64_t lead = context.num_prefixed + tokens.embedded();
  for (const PromptPlace& place : notes->places) context.contexts.push_back(lead + place.end());
  Tensor real_BT = prompted.batch.attention_mask_BS;
  if (real_BT.defined() && context.num_prefixed > 0) real_BT = nn::with_virtual_columns(real_BT, context.num_prefixed);
  const bool sees_cached_prefix = cache != nullptr && first == 0 && cache->virtual_tokens() > 0;
  const bool has_kernel = fast.fused_attention && ops::attends_joined(device, dtype);
  const bool has_contexts = first == 0 && context.lengths.empty();  // of packed rows each sequence is attended by itself
  if (real_BT.defined() || sees_cached_prefix) {
    context.mask =
        attention_mask(context.contexts, real_BT, first, lead + length, cache != nullptr ? cache->virtual_tokens() : 0, device);
  } else if (has_contexts && !has_kernel) {
    context.shared = ops::contexts_of(context.contexts, device);
  }
  context.joined = has_kernel && fast.fused_rotary && cache == nullptr && !context.mask.defined();
  context.cache = cache;
  context.fast = fast;
  context.recompute = recompute;
  context.activations = activations;

  const Residual stream = nn::through_layers<GlmLayerImpl>(layers, {prompted.x_BSD, Tensor()}, context, tokens.by_layer);
  if (cache != nullptr) {
    cache->advance_virtual(tokens.embedded());
    cache->advance(length);
  }
  const Tensor states_BSD = final_layernorm->forward_sum(stream.x_BSD, stream.pending_BSD, residual_scale(config_), fast)
                                .to(stream.pending_BSD.scalar_type());
  return nn::taken_apart(states_BSD, prompted, tokens.embedded());
}

bool GlmModelImpl::keeps_rows_apart(const nn::FastPaths& fast) const {
  const auto dtype = word_embeddings->weight.scalar_type();
  if (!fast.fused_norm || !word_embeddings->slot.contributing().empty() || nn::rows_are_chosen(word_embeddings->slot))
    return false;
  return std::all_of(layers->begin(), layers->end(), [&](const auto& module) {
    const auto* layer = module->template as<GlmLayerImpl>();
    if (!layer->attention_adapters->slot.contributing().empty() || !layer->output_adapters->slot.contributing().empty())
      return false;
    return layer->attention->keeps_rows_apart(dtype, fast) && layer->mlp->keeps_rows_apart(dtype, fast);
  });
}

ChatGlmForConditionalGenerationImpl::ChatGlmForConditionalGenerationImpl(const GlmConfig& config_,
                                                                         const nn::ParameterOptions& parameters)
    : config(config_) {
  // The layers' own initialisation would draw every weight once in vain; this model has its rule.
  nn::ParameterOptions uninitialized = parameters;
  uninitialized.initialize = false;
  transformer = register_module("transformer", GlmModel(config, uninitialized));
  nn::ParameterOptions resident = uninitialized;
  resident.allocate = true;
  resident.quantization = std::nullopt;
  lm_head =
      register_module("lm_head", nn::Linear(nn::LinearOptions{config.hidden_size, config.vocab_size, /*bias=*/false, resident}));
  if (config.tie_word_embeddings) lm_head->tie_weight(transformer->word_embeddings->weight);
  head_group_ = nn::LinearGroup({lm_head});
  if (parameters.initialize) nn::initialize(*this, config.initializer_range, config.tie_word_embeddings ? "lm_head.weight" : "");
}

void ChatGlmForConditionalGenerationImpl::untie_head() {
  if (!config.tie_word_embeddings) return;
  config.tie_word_embeddings = false;
  lm_head->untie_weight();
}

Tensor ChatGlmForConditionalGenerationImpl::hidden(const Batch& batch, nn::KvCache* cache) {
  return transformer->forward(batch, cache, fast_paths, recompute, activations, prompts().get()).hidden_BSD;
}

nn::PredictingStates ChatGlmForConditionalGenerationImpl::predicting_states(const Batch& batch) {
  return transformer->forward(batch, nullptr, fast_paths, recompute, activations, prompts().get());
}

at::ScalarType ChatGlmForConditionalGenerationImpl::stored_dtype() const { return io::to_torch(config.dtype, "model.dtype"); }

std::optional<nn::PromptShape> ChatGlmForConditionalGenerationImpl::prompt_shape() const {
  return nn::PromptShape{config.num_layers, config.num_attention_heads, config.num_attention_heads, config.head_dim(),
                         config.hidden_size};
}

int64_t ChatGlmForConditionalGenerationImpl::independent_rows() {
  const auto dtype = transformer->word_embeddings->weight.scalar_type();
  const bool apart = transformer->keeps_rows_apart(fast_paths) && head_group_.keeps_rows_apart(dtype, fast_paths) &&
                     compute_dtype(at::kCPU, dtype) == dtype;
  return apart ? ops::rows::kFewRows : 1;
}

}  // namespace lora::glm
