#include "lora/adapters/adapter_set.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include "adapters/state.h"
#include "core/check.h"

namespace lora {

const std::string& AdapterSet::name() const {
  return state_->name;
}
const LoraOptions& AdapterSet::options() const {
  return state_->options;
}
const std::vector<AdapterSet::Slot>& AdapterSet::slots() const {
  return state_->slots;
}
const std::vector<AdapterSet::SavedParameter>& AdapterSet::saved_parameters() const {
  return state_->saved;
}
const std::vector<AdapterSet::SavedParameter>& AdapterSet::biases() const {
  return state_->biases;
}
bool AdapterSet::is_active() const {
  return state_->active_position.has_value();
}

std::vector<std::pair<std::string, at::Tensor>> AdapterSet::named_parameters() const {
  std::vector<std::pair<std::string, at::Tensor>> found;
  for (const auto& slot : slots()) {
    for (const auto& parameter : slot.adapter->named_parameters()) {
      found.emplace_back(slot.path + "." + name() + "." + parameter.key(), parameter.value());
    }
  }
  for (const auto& saved : saved_parameters()) found.emplace_back(saved.name, saved.parameter);
  for (const auto& bias : biases()) found.emplace_back(bias.name, bias.parameter);
  return found;
}

std::vector<at::Tensor> AdapterSet::parameters() const {
  std::vector<at::Tensor> tensors;
  for (auto& [name, tensor] : named_parameters()) tensors.push_back(std::move(tensor));
  return tensors;
}

std::vector<std::string> AdapterSet::names() const {
  std::vector<std::string> names;
  for (auto& [name, tensor] : named_parameters()) names.push_back(std::move(name));
  return names;
}

at::Tensor AdapterSet::regularizer() const {
  at::Tensor sum;
  for (const auto& slot : slots()) {
    const auto term = slot.adapter->regularizer();
    if (term.defined()) sum = sum.defined() ? sum + term : term;
  }
  return sum;
}

void AdapterSet::set_enabled(bool enabled) {
  if (!enabled) unmerge();
  for (const auto& slot : slots()) adapters::slot_of(slot).set_enabled(enabled);
  state_->put_trained_values(enabled && is_active());
}

void AdapterSet::merge() {
  for (const auto& slot : slots()) {
    require<ConfigError>(adapters::slot_of(slot).enabled(),
                         "[adapters.merge] adapters must be switched on; found them off at {}; "
                         "call set_enabled(true)",
                         slot.path);
  }
  // A trial on copies: taking a merge back is not exact in half precision, so none may fail once
  // weights change.
  for (const auto& slot : slots()) {
    nn::AdapterSlot trial = adapters::slot_of(slot);
    at::Tensor weight = adapters::weight_value_of(slot).detach().clone();
    trial.merge(weight);
  }
  for (const auto& slot : slots()) adapters::merge(slot);
}

void AdapterSet::unmerge() {
  for (const auto& slot : slots()) adapters::unmerge(slot);
}

}  // namespace lora
