// What training, evaluation and diagnosis do around a forward pass.
#pragma once

#include <torch/nn/module.h>

#include <memory>
#include <utility>
#include <vector>

namespace lora::train {

/// Where the model's parameters are.
inline at::Device device_of(const torch::nn::Module& model) {
  const auto parameters = model.parameters();
  return parameters.empty() ? at::Device(at::kCPU) : parameters.front().device();
}

/// Evaluation mode (no dropout) for a scope; afterwards every module has its own mode again.
class EvalMode {
 public:
  explicit EvalMode(torch::nn::Module& model) {
    remember(model);
    for (const auto& child : model.modules(/*include_self=*/false)) remember(*child);
    model.eval();
  }
  ~EvalMode() {
    // train() descends, so a module's own mode must be set after its parent's.
    for (const auto& [module, was_training] : former_) module->train(was_training);
  }
  EvalMode(const EvalMode&) = delete;
  EvalMode& operator=(const EvalMode&) = delete;

 private:
  void remember(torch::nn::Module& module) { former_.emplace_back(&module, module.is_training()); }

  std::vector<std::pair<torch::nn::Module*, bool>> former_;
};

}  // namespace lora::train
