#pragma once

#include <torch/nn/module.h>

#include <cstdint>

#include "lora/adapters/adapter_sets.h"
#include "lora/train/optimizer.h"

namespace lora::train {

/// What the parameters of a run need, exactly. Bytes are those of the tensors' own types.
struct ParameterMemory {
  int64_t parameters = 0, trainable = 0;  ///< numbers; a tied tensor counts once
  uint64_t weights_bytes = 0;             ///< of the base, trained or not
  uint64_t adapters_bytes = 0;            ///< factors, and the values of modules_to_save and biases
  uint64_t gradients_bytes = 0;
  uint64_t optimizer_bytes = 0;  ///< moments, fp32 masters of parameters in half precision, AdaLoRA's averages
  /// For a moment, without masters: the largest parameter in half precision (and its gradient) in fp32.
  uint64_t update_bytes = 0;
};

/// Counts the parameters of a model as it stands, adapters attached and freezing rules applied. A
/// model on the meta device, which has no memory, gives the same numbers.
ParameterMemory parameter_memory(const torch::nn::Module& model, const AdapterSets& adapters, const OptimizerOptions& optimizer);

}  // namespace lora::train
