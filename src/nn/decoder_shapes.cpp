#include "lora/nn/decoder_shapes.h"

#include "lora/nn/causal_lm.h"
#include "lora/nn/linear.h"

namespace lora::nn {
namespace {

/// (IA)^3 scales inputs or outputs, DoRA outputs.
void add_scales(const Adapter& adapter, LinearShape& shape) {
  if (!adapter.scales()) return;
  const bool of_input = adapter.input_scale().defined();
  shape.input_scaled = shape.input_scaled || of_input;
  shape.output_scaled = shape.output_scaled || !of_input;
  const at::Tensor rows_RI = adapter.rows_for_scale();
  if (rows_RI.defined()) shape.rows_for_scales += rows_RI.size(0);
}

/// In evaluation mode every low-rank adapter shows its factors; those that show none in training drop inputs.
std::optional<LowRankFactors> factors_in(Adapter& adapter, bool training) {
  const bool was_training = adapter.is_training();
  adapter.train(training);
  auto factors = adapter.low_rank();
  adapter.train(was_training);
  return factors;
}

}  // namespace

int64_t trained_numbers(const torch::nn::Module& module) {
  int64_t sum = 0;
  for (const auto& parameter : module.parameters()) sum += parameter.requires_grad() ? parameter.numel() : 0;
  return sum;
}

LinearShape shape_of(const LinearImpl& linear) {
  LinearShape shape{.in = linear.options.in_features, .out = linear.options.out_features, .dtype = linear.weight.scalar_type()};
  if (linear.weight_is_quantized()) shape.few_bits = linear.quantized_weight()->scheme().type;
  shape.trained = linear.weight.requires_grad() || (linear.bias.defined() && linear.bias.requires_grad());
  for (const auto& adapter : linear.slot.contributing()) {
    shape.adapter_numbers += trained_numbers(*adapter);
    add_scales(*adapter, shape);
    if (adapter->adds() && !factors_in(*adapter, /*training=*/true)) ++shape.dropouts;
    const auto factors = factors_in(*adapter, /*training=*/false);
    if (!factors) continue;
    shape.rank += factors->a_RI.size(0);
    if (!factors->a_RI.is_leaf()) shape.products_of_factors += factors->a_RI.numel();
  }
  shape.adapter_trained = shape.adapter_numbers > 0;
  return shape;
}

void add_virtual_tokens(const CausalLMImpl& model, DecoderShapes& shapes) {
  if (!model.prompts()) return;
  for (const auto& prompt : model.prompts()->contributing()) {
    (prompt->is_prefix() ? shapes.prefixed_tokens : shapes.embedded_tokens) += prompt->length();
    shapes.prompt_numbers += trained_numbers(*prompt);
  }
}

}  // namespace lora::nn
