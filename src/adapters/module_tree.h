// The modules of a base model as matching sees them: without the adapters that may already sit in
// it.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace lora::adapters {

struct NamedModule {
  std::string path;
  std::shared_ptr<torch::nn::Module> module;
};

/// Every module below `model`, parents first, each object once (under its first path); adapters and
/// what belongs to them left out.
std::vector<NamedModule> base_modules(const torch::nn::Module& model);

/// True for layers that have a slot.
bool is_adaptable(const torch::nn::Module& module);

/// Parameters of the base model with their names in named_parameters(), those of `model` itself
/// first.
std::vector<std::pair<std::string, at::Tensor>> base_parameters(const torch::nn::Module& model,
                                                                const std::vector<NamedModule>& modules);

/// "model.layers.0.q_proj" -> "q_proj".
std::string last_part(const std::string& path);

}  // namespace lora::adapters
