#include "lora/nn/decoder_shapes.h"

#include "lora/nn/linear.h"

namespace lora::nn {

// In evaluation mode every low-rank adapter shows its factors; those that show none in training drop inputs.
LinearShape shape_of(const LinearImpl& linear) {
  LinearShape shape{.in = linear.options.in_features, .out = linear.options.out_features, .dtype = linear.weight.scalar_type()};
  if (linear.weight_is_quantized()) shape.few_bits = linear.quantized_weight()->scheme().type;
  shape.trained = linear.weight.requires_grad() || (linear.bias.defined() && linear.bias.requires_grad());
  for (const auto& adapter : linear.slot.contributing()) {
    for (const auto& parameter : adapter->parameters()) {
      shape.adapter_trained = shape.adapter_trained || parameter.requires_grad();
    }
    adapter->train();
    if (!adapter->low_rank()) ++shape.dropouts;
    adapter->eval();
    if (const auto factors = adapter->low_rank()) shape.rank += factors->a_RI.size(0);
  }
  return shape;
}

}  // namespace lora::nn
