#include "adapters/state.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "core/check.h"
#include "lora/adapters/trainable_tokens.h"

namespace lora {
namespace {

void exchange(AdapterSet::SavedParameter& saved) {
  const at::Tensor current = saved.parameter.detach();
  // The model may have moved since; the type stays, since it is what tells a trained value from a
  // base value.
  saved.parameter.set_data(saved.other.to(current.device()));
  saved.parameter.mutable_grad() = at::Tensor();  // of the former value, perhaps of another type
  saved.other = current;
}

}  // namespace

void AdapterSet::State::put_trained_values(bool into_model) {
  if (trained_values_in_model == into_model) return;
  for (auto& parameter : saved) exchange(parameter);
  for (auto& parameter : biases) exchange(parameter);
  trained_values_in_model = into_model;
}

void AdapterSet::State::set_requires_grad(bool required) {
  for (const auto& slot : slots) {
    for (auto& parameter : slot.adapter->parameters()) parameter.set_requires_grad(required);
  }
  for (const auto& block : blocks) {
    for (auto& parameter : block.adapter->parameters()) parameter.set_requires_grad(required);
  }
  if (prompt) {
    for (auto& parameter : prompt->parameters()) parameter.set_requires_grad(required);
  }
  for (auto& saved_parameter : saved) saved_parameter.parameter.set_requires_grad(required);
  for (auto& bias : biases) bias.parameter.set_requires_grad(required);
}

std::vector<std::pair<std::string, at::Tensor>> AdapterSet::State::trained_tensors() const {
  std::vector<std::pair<std::string, at::Tensor>> found;
  const auto add = [&](const std::string& path, const torch::nn::Module& module) {
    for (const auto& entry : module.named_parameters()) found.emplace_back(path + "." + entry.key(), entry.value());
    for (const auto& entry : module.named_buffers()) {
      const bool is_start = entry.key() == "start_A" || entry.key() == "start_B";
      if (is_start) found.emplace_back(path + "." + entry.key(), entry.value());
    }
  };
  for (const auto& slot : slots) add(slot.path, *slot.adapter);
  for (const auto& block : blocks) add(block.path, *block.adapter);
  if (prompt) add(nn::PromptSlotImpl::kChildName, *prompt);
  for (const auto* parameters : {&saved, &biases}) {
    for (const auto& parameter : *parameters) {
      found.emplace_back(parameter.name, trained_values_in_model ? parameter.parameter : parameter.other);
    }
  }
  return found;
}

/// Files hold what is left of AdaLoRA's ranks, what a network made of virtual tokens, and sums with a start.
bool AdapterSet::State::file_falls_short() const {
  if (allocator || (prompt && !prompt->is_plain())) return true;
  return std::any_of(slots.begin(), slots.end(), adapters::has_start);
}

namespace adapters {

Registry& registry_of(torch::nn::Module& model) {
  for (const auto& child : model.named_children()) {
    if (auto registry = std::dynamic_pointer_cast<Registry>(child.value())) return *registry;
  }
  return *model.register_module(Registry::kChildName, std::make_shared<Registry>());
}

std::vector<std::shared_ptr<Registry>> registries_in(torch::nn::Module& model) {
  std::vector<std::shared_ptr<Registry>> found;
  for (const auto& module : model.modules(/*include_self=*/false)) {
    if (auto registry = std::dynamic_pointer_cast<Registry>(module)) found.push_back(std::move(registry));
  }
  return found;
}

nn::AdapterSlot& slot_of(const AdapterSet::Slot& slot) {
  return slot.linear.is_empty() ? slot.embedding.ptr()->slot : slot.linear.ptr()->slot;
}

const at::Tensor& weight_form_of(const AdapterSet::Slot& slot) {
  return slot.linear.is_empty() ? slot.embedding->weight : slot.linear->weight;
}

at::Tensor weight_value_of(const AdapterSet::Slot& slot) {
  return slot.linear.is_empty() ? slot.embedding->weight : slot.linear->weight_value();
}

bool has_start(const AdapterSet::Slot& slot) {
  const auto* linear = dynamic_cast<const LoraLinear*>(slot.adapter.get());
  return linear != nullptr && linear->has_start();
}

void merge(const AdapterSet::Slot& slot) { slot.linear.is_empty() ? slot.embedding.ptr()->merge() : slot.linear.ptr()->merge(); }

namespace {

/// Rows trained for one of two places that share a weight would come to both.
void require_mergeable_rows(const AdapterSet& adapters) {
  std::map<const at::TensorImpl*, std::vector<const AdapterSet::Slot*>> by_weight;
  for (const auto& slot : adapters.slots()) {
    if (token_rows(*slot.adapter) != nullptr) by_weight[weight_form_of(slot).unsafeGetTensorImpl()].push_back(&slot);
  }
  for (const auto& [weight, slots] : by_weight) {
    const bool is_shared = std::ranges::find(adapters.state().shared_weights, weight) != adapters.state().shared_weights.end();
    const bool go_together = slots.size() == 2 && token_rows(*slots[0]->adapter) == token_rows(*slots[1]->adapter);
    require<ConfigError>(
        !is_shared || go_together,
        "[adapters.merge] embedding and head share their weight, and only rows that both train can be merged into it; "
        "found others at {}; use the adapter beside its base model",
        slots.front()->path);
  }
}

}  // namespace

void require_mergeable(const AdapterSet& adapters) {
  require<ConfigError>(
      adapters.blocks().empty() && !adapters.prompt(),
      "[adapters.merge] a method that changes weights can be merged; found {}, which no weight can hold; use the "
      "adapter beside its base model",
      method_name(adapters.options()));
  for (const auto& slot : adapters.slots()) {
    require<ConfigError>(slot_of(slot).enabled(),
                         "[adapters.merge] adapters must be switched on; found them off at {}; "
                         "call set_enabled(true)",
                         slot.path);
  }
  require_mergeable_rows(adapters);
}

void merge_all(const std::vector<AdapterSet::Slot>& slots) {
  // A trial on copies: taking a merge back is not exact in half precision, so none may fail once
  // weights change.
  for (const auto& slot : slots) {
    nn::AdapterSlot trial = slot_of(slot);
    at::Tensor weight = weight_value_of(slot).detach().clone();
    at::Tensor bias = slot.linear.is_empty() || !slot.linear->bias.defined() ? at::Tensor() : slot.linear->bias.detach().clone();
    trial.merge(weight, bias);
  }
  for (const auto& slot : slots) merge(slot);
}

void unmerge(const AdapterSet::Slot& slot) {
  const auto& names = slot_of(slot).merged();
  const bool was_merged = std::ranges::any_of(names, [&](const auto& name) { return slot_of(slot).find(name) == slot.adapter; });
  slot.linear.is_empty() ? slot.embedding.ptr()->unmerge() : slot.linear.ptr()->unmerge();
  const auto* rows = dynamic_cast<const TrainableTokens*>(slot.adapter.get());
  if (!was_merged || rows == nullptr) return;
  at::Tensor weight = slot.linear.is_empty() ? slot.embedding->weight : slot.linear->weight;
  rows->restore(weight);
}

}  // namespace adapters
}  // namespace lora
