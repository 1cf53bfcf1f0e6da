#pragma once

#include <torch/nn/modules/linear.h>

#include <memory>

#include "lora/adapters/lora.h"

namespace lora {

/// LoRA on a torch::nn::Linear of a model that cannot use lora::nn::Linear. The layer's public
/// member `weight` is replaced before every forward pass by W + scale * B A; the module's registry
/// keeps W.
///
/// Cost, per layer and step: a full (out, in) tensor and a full weight-gradient product, which the
/// slot never needs (measured at 2048 x 2048, rank 8, 256 tokens, one thread: about twice the
/// time). Call refresh() before every forward pass, and after moving or casting the model.
///
/// The adapter becomes the layer's child module "default", so that its parameters are the model's
/// and move with it.
class Reparametrization {
 public:
  /// Throws ConfigError when options ask for dropout on the input, which this form cannot have, or
  /// when the layer carries one already.
  Reparametrization(torch::nn::Linear linear, const LoraOptions& options);

  /// Puts the current W + scale * B A into the layer.
  void refresh();
  /// Puts W back; the layer no longer sees the adapter.
  void remove();
  /// Adds the update to W for good and detaches. Throws NonFiniteError, changing nothing, when W
  /// would not be finite.
  void merge();
  LoraLinear& adapter() { return *adapter_; }

 private:
  torch::nn::Linear linear_;
  at::Tensor base_weight_;
  std::shared_ptr<LoraLinear> adapter_;
};

/// Freezes `linear` and attaches. options.targets is not looked at.
Reparametrization reparametrize(torch::nn::Linear& linear, const LoraOptions& options);

}  // namespace lora
