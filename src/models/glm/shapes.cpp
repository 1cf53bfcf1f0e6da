#include "lora/models/glm/shapes.h"

#include "adapters/bottleneck_shapes.h"
#include "nn/eval_mode.h"

namespace lora::glm {
namespace {

bool trains(const nn::LayerNormImpl& norm) { return norm.weight.requires_grad() || norm.bias.requires_grad(); }

nn::DecoderLayerShape shape_of(const GlmLayerImpl& layer) {
  return {.qkv = {nn::shape_of(*layer.attention->query_key_value)},
          .out = {nn::shape_of(*layer.attention->dense)},
          .gate_up = {nn::shape_of(*layer.mlp->dense_h_to_4h)},
          .down = {nn::shape_of(*layer.mlp->dense_4h_to_h)},
          .norms_trained = trains(*layer.input_layernorm) || trains(*layer.post_attention_layernorm),
          .attention_adapters = adapters::bottleneck_shapes(layer.attention_adapters),
          .output_adapters = adapters::bottleneck_shapes(layer.output_adapters)};
}

}  // namespace

nn::DecoderShapes shapes_of(ChatGlmForConditionalGenerationImpl& model) {
  const nn::EvalMode eval_mode(model);
  const auto& config = model.config;
  const auto& embedding = *model.transformer->word_embeddings;
  nn::DecoderShapes shapes;
  shapes.hidden = config.hidden_size;
  shapes.heads = shapes.kv_heads = config.num_attention_heads;
  shapes.head_dim = config.head_dim();
  shapes.vocabulary = config.vocab_size;
  shapes.stream_dtype = embedding.weight.scalar_type();
  shapes.embedding_table_trained = embedding.weight.requires_grad();
  shapes.embedding_trained = shapes.embedding_table_trained || !embedding.slot.contributing().empty();
  for (const auto& module : *model.transformer->layers) shapes.layers.push_back(shape_of(*module->as<GlmLayerImpl>()));
  shapes.head = nn::shape_of(*model.lm_head);
  shapes.head_is_tied = config.tie_word_embeddings;
  shapes.head_has_bias = model.lm_head->bias.defined();
  shapes.layer_norms = shapes.adds_to_normed = shapes.qkv_by_heads = true;
  nn::add_virtual_tokens(model, shapes);
  shapes.weight_dtype = shapes.layers.front().qkv.front().dtype;
  return shapes;
}

}  // namespace lora::glm
