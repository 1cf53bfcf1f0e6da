#include "lora/models/llama/shapes.h"

#include "lora/adapters/bottleneck.h"
#include "nn/eval_mode.h"

namespace lora::llama {
namespace {

int64_t trained_numbers(const torch::nn::Module& module) {
  int64_t sum = 0;
  for (const auto& parameter : module.parameters()) sum += parameter.requires_grad() ? parameter.numel() : 0;
  return sum;
}

/// (IA)^3 scales inputs or outputs, DoRA outputs.
void add_scales(const nn::Adapter& adapter, nn::LinearShape& shape) {
  if (!adapter.scales()) return;
  const bool of_input = adapter.input_scale().defined();
  shape.input_scaled = shape.input_scaled || of_input;
  shape.output_scaled = shape.output_scaled || !of_input;
  const at::Tensor rows_RI = adapter.rows_for_scale();
  if (rows_RI.defined()) shape.rows_for_scales += rows_RI.size(0);
}

/// In evaluation mode every low-rank adapter shows its factors; those that show none in training drop inputs.
nn::LinearShape shape_of(const nn::LinearImpl& linear) {
  nn::LinearShape shape{.in = linear.options.in_features, .out = linear.options.out_features, .dtype = linear.weight.scalar_type()};
  if (linear.weight_is_quantized()) shape.few_bits = linear.quantized_weight()->scheme().type;
  shape.trained = linear.weight.requires_grad() || (linear.bias.defined() && linear.bias.requires_grad());
  for (const auto& adapter : linear.slot.contributing()) {
    shape.adapter_numbers += trained_numbers(*adapter);
    add_scales(*adapter, shape);
    adapter->train();
    if (adapter->adds() && !adapter->low_rank()) ++shape.dropouts;
    adapter->eval();
    const auto factors = adapter->low_rank();
    if (!factors) continue;
    shape.rank += factors->a_RI.size(0);
    if (!factors->a_RI.is_leaf()) shape.products_of_factors += factors->a_RI.numel();
  }
  shape.adapter_trained = shape.adapter_numbers > 0;
  return shape;
}

nn::BottleneckShape shape_of(const BottleneckAdapter& adapter) {
  const auto& options = adapter.options();
  const std::string& activation = options.non_linearity;
  return {.size = adapter.size(),
          .numbers = trained_numbers(adapter),
          .reads_sum = !options.is_parallel && options.original_ln_before,
          .reads_stream = options.is_parallel,
          .drops = options.dropout > 0,
          .keeps_before_activation = activation != "relu" && activation != "tanh" && activation != "sigmoid",
          .learns_scale = options.learn_scaling};
}

std::vector<nn::BottleneckShape> shapes_of(const nn::BlockOutput& block) {
  std::vector<nn::BottleneckShape> shapes;
  for (const auto& adapter : block->slot.contributing()) {
    if (const auto* bottleneck = dynamic_cast<const BottleneckAdapter*>(adapter.get())) shapes.push_back(shape_of(*bottleneck));
  }
  return shapes;
}

void add_virtual_tokens(const LlamaForCausalLMImpl& model, nn::DecoderShapes& shapes) {
  if (!model.prompts()) return;
  for (const auto& prompt : model.prompts()->contributing()) {
    (prompt->is_prefix() ? shapes.prefixed_tokens : shapes.embedded_tokens) += prompt->length();
    shapes.prompt_numbers += trained_numbers(*prompt);
  }
}

nn::DecoderLayerShape shape_of(const LlamaDecoderLayerImpl& layer) {
  const auto& attention = *layer.self_attn;
  const auto& mlp = *layer.mlp;
  return {.qkv = {shape_of(*attention.q_proj), shape_of(*attention.k_proj), shape_of(*attention.v_proj)},
          .out = {shape_of(*attention.o_proj)},
          .gate_up = {shape_of(*mlp.gate_proj), shape_of(*mlp.up_proj)},
          .down = {shape_of(*mlp.down_proj)},
          .norms_trained = layer.input_layernorm->weight.requires_grad() ||
                           layer.post_attention_layernorm->weight.requires_grad(),
          .attention_adapters = shapes_of(layer.attention_adapters),
          .output_adapters = shapes_of(layer.output_adapters)};
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
  shapes.head = shape_of(*model.lm_head);
  shapes.head_is_tied = config.tie_word_embeddings;
  shapes.head_has_bias = model.lm_head->bias.defined();
  add_virtual_tokens(model, shapes);
  const auto& first = model.model->layers[0]->as<LlamaDecoderLayerImpl>()->self_attn->q_proj->weight;
  shapes.weight_dtype = first.scalar_type();
  return shapes;
}

}  // namespace lora::llama
