// What injecting a method is going to attach to a model: made and checked before anything changes.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "adapters/module_tree.h"
#include "lora/adapters/adapter_set.h"
#include "lora/nn/causal_lm.h"

namespace lora::adapters {

using NamedParameters = std::vector<std::pair<std::string, at::Tensor>>;

/// One module to adapt, before its adapter is made.
struct PlannedSlot {
  AdapterSet::Slot slot;
  std::function<std::shared_ptr<nn::Adapter>()> make = nullptr;
  double elements = 0;  ///< in double, since ranks from outside may be anything
};

/// What is about to be attached; the model is as it was.
struct AttachmentPlan {
  std::vector<PlannedSlot> slots;
  std::vector<AdapterSet::BlockSlot> blocks;  ///< whose adapters are made by
  std::function<std::shared_ptr<nn::BlockAdapter>(const AdapterSet::BlockSlot&)> make_block;
  std::function<std::shared_ptr<PromptEncoder>()> make_prompt;  ///< null: no virtual tokens
  nn::CausalLMImpl* prompted = nullptr;                         ///< the model that takes them
  double other_elements = 0;                                    ///< of blocks and virtual tokens
  NamedParameters saved, biases;                                ///< trained whole
  std::vector<NamedModule> modules_to_save;
};

/// Plans the method of `options`, whose open choices (targets, sizes) are filled in; the plan refers to them. as_stored: see
/// inject_as_stored. Throws ConfigError as inject_method does.
AttachmentPlan plan_attachment(MethodOptions& options, torch::nn::Module& model, const std::string& name, bool as_stored);

/// How many numbers the plan asks for.
double num_elements(const AttachmentPlan& plan);

/// Makes a planned slot's adapter, where its layer is and in its mode.
AdapterSet::Slot make_slot(const PlannedSlot& planned);

/// The adapter of LoRA, or DoRA, for one layer.
std::shared_ptr<nn::Adapter> make_lora(const AdapterSet::Slot& slot, const LoraSize& size, const LoraOptions& options);

}  // namespace lora::adapters
