// Other sizes for an adapter that is attached already.
#pragma once

#include <torch/nn/module.h>

#include <functional>
#include <string>

#include "lora/adapters/adapter_set.h"

namespace lora::adapters {

/// Makes the adapters of a LoRA set anew as `options` say, whose targets count no more: `keeps(path)` says which modules have
/// one. Modules and biases that are trained whole stay.
void refit_lora(torch::nn::Module& model, const AdapterSet& set, const LoraOptions& options,
                const std::function<bool(const std::string&)>& keeps);

}  // namespace lora::adapters
