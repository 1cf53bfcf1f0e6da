#pragma once

#include <torch/nn/module.h>

#include <string>

#include "lora/adapters/adapter_set.h"

namespace lora::adapters {

/// inject(), refusing (ShapeError) to make an adapter of more than `max_elements` numbers: options
/// from a file may ask for any amount of memory.
AdapterSet inject_within(torch::nn::Module& model, const LoraOptions& options,
                         const std::string& name, double max_elements);

}  // namespace lora::adapters
