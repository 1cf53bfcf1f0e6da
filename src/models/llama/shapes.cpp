#include "lora/models/llama/shapes.h"

#include "adapters/bottleneck_shapes.h"
#include "nn/eval_mode.h"

namespace lora::llama {
namespace {

nn::DecoderLayerShape shape_of(const LlamaDecoderLayerImpl& layer) {
  const auto& attention = *layer.self_attn;
  const auto& mlp = *layer.mlp;
  const nn::LinearGroupShape joined = attention.W_pack
                                          ? nn::LinearGroupShape{nn::shape_of(*attention.W_pack)}
                                          : nn::LinearGroupShape{nn::shape_of(*attention.q_proj), nn::shape_of(*attention.k_proj),
                                                                 nn::shape_of(*attention.v_proj)};
  return {
      .qkv = joined,
      .out = {nn::shape_of(*attention.o_proj)},
      .gate_up = {nn::shape_of(*mlp.gate_proj), nn::shape_of(*mlp.up_proj)},
      .down = {nn::shape_of(*mlp.down_proj)},
      .norms_trained = layer.input_layernorm->weight.requires_grad() || layer.post_attention_layernorm->weight.requires_grad(),
      .attention_adapters = adapters::bottleneck_shapes(layer.attention_adapters),
      .output_adapters = adapters::bottleneck_shapes(layer.output_adapters)};
}

}  // namespace

nn::DecoderShapes shapes_of(LlamaForCausalLMImpl& model) {
  const nn::EvalMode eval_mode(model);
  const auto& config = model.config;
  const auto& embedding = *model.model->embed_tokens;
  nn::DecoderShapes shapes;
  shapes.hidden = config.hidden_size;
  shapes.heads = config.num_attention_heads;
  shapes.kv_heads = config.num_key_value_heads;
  shapes.head_dim = config.head_dim;
  shapes.vocabulary = config.vocab_size;
  shapes.stream_dtype = embedding.weight.scalar_type();
  shapes.embedding_table_trained = embedding.weight.requires_grad();
  shapes.embedding_trained = shapes.embedding_table_trained || !embedding.slot.contributing().empty();
  for (const auto& module : *model.model->layers) shapes.layers.push_back(shape_of(*module->as<LlamaDecoderLayerImpl>()));
  shapes.head = nn::shape_of(*model.lm_head);
  shapes.head_is_tied = config.tie_word_embeddings;
  shapes.head_has_bias = model.lm_head->bias.defined();
  nn::add_virtual_tokens(model, shapes);
  const auto& first = model.model->layers[0]->as<LlamaDecoderLayerImpl>()->self_attn->o_proj->weight;
  shapes.weight_dtype = first.scalar_type();
  return shapes;
}

}  // namespace lora::llama
