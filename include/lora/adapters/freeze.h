#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <string>
#include <vector>

#include "lora/adapters/adapter_set.h"

namespace lora {

/// Regular expressions (core/pattern.h) searched in parameter names, applied after the method's own
/// rule: first `freeze`, then `train`. Each must match at least one parameter.
struct FreezeRules {
  std::vector<std::string> train = {}, freeze = {};
};

/// What trains once the rules are applied.
struct FreezeReport {
  int64_t trainable = 0, total = 0;  ///< parameters; a tied tensor counts once, what train_fused_rows holds does not train
  std::vector<std::string> trainable_names = {};
  /// "trainable params: 4,194,304 || all params: 6,742,609,920 || trainable%: 0.0622"
  std::string summary() const;
};

/// Freezes everything but what `adapters` trains, then applies `rules`. What trains is turned into
/// fp32 when it is fp16; in bf16 it stays, since train::Optimizer updates a copy in fp32 (turn it
/// into fp32 yourself for an optimizer that does not). Throws ConfigError when the adapter is not active, nothing is
/// left to train, an expression matches no parameter, or one freezes modules of AdaLoRA.
FreezeReport freeze_base(torch::nn::Module& model, const AdapterSet& adapters, const FreezeRules& rules = {});
/// The same for several that train together; all of them must be active.
FreezeReport freeze_base(torch::nn::Module& model, const std::vector<AdapterSet>& adapters, const FreezeRules& rules = {});

/// Every parameter trains except what `rules` freeze: for full fine-tuning. Same types and errors.
FreezeReport train_all(torch::nn::Module& model, const FreezeRules& rules = {});

}  // namespace lora
