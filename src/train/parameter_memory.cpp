#include "lora/train/parameter_memory.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <map>
#include <set>

#include "lora/adapters/fused_rows.h"
#include "lora/nn/linear.h"

namespace lora::train {
namespace {

bool is_half(at::ScalarType type) { return type == at::kHalf || type == at::kBFloat16; }

uint64_t nbytes(const at::Tensor& tensor) {
  return static_cast<uint64_t>(tensor.numel()) * c10::elementSize(tensor.scalar_type());
}

/// What the weights in few bits take, by their parameters.
std::map<const at::TensorImpl*, uint64_t> quantized_bytes(const torch::nn::Module& model) {
  std::map<const at::TensorImpl*, uint64_t> bytes;
  for (const auto& module : model.modules(/*include_self=*/false)) {
    const auto* linear = module->as<nn::LinearImpl>();
    if (linear != nullptr && linear->weight_is_quantized()) {
      bytes.emplace(linear->weight.unsafeGetTensorImpl(), linear->quantized_weight()->bytes());
    }
  }
  return bytes;
}

/// Of importances and their uncertainty.
uint64_t average_bytes(const AdapterSet& set) {
  uint64_t bytes = 0;
  if (!set.allocator()) return bytes;
  for (const auto& slot : set.slots()) {
    for (const auto& parameter : slot.adapter->parameters()) bytes += 2 * nbytes(parameter);
  }
  return bytes;
}

uint64_t state_bytes(const at::Tensor& parameter, const OptimizerOptions& optimizer) {
  const uint64_t numbers = static_cast<uint64_t>(parameter.numel());
  const uint64_t wide = parameter.scalar_type() == at::kDouble ? 8 : 4;
  const uint64_t master = optimizer.master_weights && is_half(parameter.scalar_type()) ? numbers * wide : 0;
  if (optimizer.type == "adamw") return master + 2 * numbers * wide + sizeof(float);
  return master + (optimizer.momentum == 0 ? 0 : numbers * wide);
}

/// Without a master the value becomes fp32 for its update, and the gradient does unless AdamW's kernel for bf16 reads it.
uint64_t update_bytes(const at::Tensor& parameter, const OptimizerOptions& optimizer) {
  if (optimizer.master_weights || !is_half(parameter.scalar_type())) return 0;
  const bool has_kernel = optimizer.type == "adamw" && parameter.scalar_type() == at::kBFloat16;
  return static_cast<uint64_t>(parameter.numel()) * (has_kernel ? 4 : 8);
}

}  // namespace

ParameterMemory parameter_memory(const torch::nn::Module& model, const AdapterSets& adapters, const OptimizerOptions& optimizer) {
  std::set<const at::TensorImpl*> in_adapter, seen;
  ParameterMemory memory;
  const auto bytes_in_few_bits = quantized_bytes(model);
  for (const auto& parameter : adapters.parameters()) in_adapter.insert(parameter.unsafeGetTensorImpl());
  for (const AdapterSet& set : adapters) {
    memory.optimizer_bytes += average_bytes(set);
    memory.trainable -= num_held_numbers(set);
    for (const auto* whole : {&set.saved_parameters(), &set.biases()}) {
      for (const auto& saved : *whole) memory.weights_bytes += nbytes(saved.other);
    }
  }
  for (const auto& entry : model.named_parameters()) {
    const at::Tensor& parameter = entry.value();
    if (!seen.insert(parameter.unsafeGetTensorImpl()).second) continue;
    memory.parameters += parameter.numel();
    const bool is_adapters = in_adapter.contains(parameter.unsafeGetTensorImpl());
    const auto few = bytes_in_few_bits.find(parameter.unsafeGetTensorImpl());
    (is_adapters ? memory.adapters_bytes : memory.weights_bytes) +=
        few == bytes_in_few_bits.end() ? nbytes(parameter) : few->second;
    if (!parameter.requires_grad()) continue;
    memory.trainable += parameter.numel();
    memory.gradients_bytes += nbytes(parameter);
    memory.optimizer_bytes += state_bytes(parameter, optimizer);
    memory.update_bytes = std::max(memory.update_bytes, update_bytes(parameter, optimizer));
  }
  return memory;
}

}  // namespace lora::train
