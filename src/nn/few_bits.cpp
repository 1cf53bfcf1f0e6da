#include "lora/nn/few_bits.h"

#include "lora/nn/linear.h"

namespace lora::nn {

FewBits few_bits_of(const torch::nn::Module& model) {
  FewBits found;
  for (const auto& module : model.modules(/*include_self=*/false)) {
    const auto* linear = module->as<LinearImpl>();
    if (linear == nullptr || !linear->weight_is_quantized()) continue;
    const auto& bits = *linear->quantized_weight();
    if (!found.scheme) found.scheme = bits.scheme();
    ++found.layers;
    found.bytes += bits.bytes();
    found.plain_bytes += static_cast<uint64_t>(linear->weight.numel()) * c10::elementSize(linear->weight.scalar_type());
  }
  return found;
}

}  // namespace lora::nn
