#pragma once

#include <torch/nn/module.h>

#include <string>

#include "lora/adapters/adapter_set.h"

namespace lora::adapters {

/// inject() for an adapter whose values come from a file: `max_elements` numbers at most (else ShapeError), since options
/// from a file may ask for any amount of memory; without what only training needs (a network that makes virtual tokens, an
/// allocation of ranks).
AdapterSet inject_as_stored(torch::nn::Module& model, const MethodOptions& options, const std::string& name, double max_elements);

}  // namespace lora::adapters
