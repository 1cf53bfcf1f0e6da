#include "lora/adapters/adapter_set.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <algorithm>

#include "adapters/state.h"
#include "core/check.h"

namespace lora {

const std::string& AdapterSet::name() const { return state_->name; }
const MethodOptions& AdapterSet::options() const { return state_->options; }
const std::vector<AdapterSet::Slot>& AdapterSet::slots() const { return state_->slots; }
const std::vector<AdapterSet::BlockSlot>& AdapterSet::blocks() const { return state_->blocks; }
const std::shared_ptr<PromptEncoder>& AdapterSet::prompt() const { return state_->prompt; }
const std::shared_ptr<RankAllocator>& AdapterSet::allocator() const { return state_->allocator; }
const std::vector<AdapterSet::SavedParameter>& AdapterSet::saved_parameters() const { return state_->saved; }
const std::vector<AdapterSet::SavedParameter>& AdapterSet::biases() const { return state_->biases; }
bool AdapterSet::is_active() const { return state_->active_position.has_value(); }

std::vector<std::pair<std::string, at::Tensor>> AdapterSet::named_parameters() const {
  std::vector<std::pair<std::string, at::Tensor>> found;
  const auto add = [&](const std::string& path, const torch::nn::Module& module) {
    for (const auto& parameter : module.named_parameters()) {
      found.emplace_back(path + "." + name() + "." + parameter.key(), parameter.value());
    }
  };
  for (const auto& slot : slots()) add(slot.path, *slot.adapter);
  for (const auto& block : blocks()) add(block.path, *block.adapter);
  if (prompt()) add(nn::PromptSlotImpl::kChildName, *prompt());
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

void AdapterSet::after_step(int64_t step, bool has_gradients) {
  if (allocator()) allocator()->after_step(step, has_gradients);
}

std::map<std::string, at::Tensor> AdapterSet::training_state() const {
  std::map<std::string, at::Tensor> state;
  if (!state_->file_falls_short()) return state;
  for (const auto& [name, tensor] : state_->trained_tensors()) state.emplace("value." + name, tensor);
  if (allocator()) {
    for (auto& [name, tensor] : allocator()->state()) state.emplace("allocator." + name, std::move(tensor));
  }
  return state;
}

void AdapterSet::load_training_state(const std::map<std::string, at::Tensor>& state) {
  constexpr std::string_view kValue = "value.", kAllocator = "allocator.";
  std::map<std::string, at::Tensor> values, averages;
  for (const auto& [name, tensor] : state) {
    const bool is_value = name.starts_with(kValue);
    require<ShapeError>(
        is_value || (name.starts_with(kAllocator) && allocator()),
        "[adapters.load] a training state must belong to this adapter; found {:?} besides; resume with the settings "
        "it was saved with",
        name);
    (is_value ? values : averages).emplace(name.substr(is_value ? kValue.size() : kAllocator.size()), tensor);
  }
  const auto own = state_->trained_tensors();
  for (const auto& [name, tensor] : own) {
    const auto found = values.find(name);
    require<ShapeError>(
        found != values.end() && found->second.sizes() == tensor.sizes(),
        "[adapters.load] a training state must hold {:?} as [{}]; it does not; resume with the settings it was saved "
        "with",
        name, fmt::join(tensor.sizes(), ", "));
  }
  require<ShapeError>(values.size() == own.size(),
                      "[adapters.load] a training state must hold {} tensors; found {}; resume with the "
                      "settings it was saved with",
                      own.size(), values.size());
  if (allocator()) allocator()->load_state(averages);
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : own) at::Tensor(tensor).copy_(values.at(name));
}

void AdapterSet::set_enabled(bool enabled) {
  if (!enabled) unmerge();
  for (const auto& slot : slots()) adapters::slot_of(slot).set_enabled(enabled);
  for (const auto& block : blocks()) block.block.ptr()->slot.set_enabled(enabled);
  if (state_->prompt_slot) state_->prompt_slot->set_enabled(enabled);
  state_->put_trained_values(enabled && is_active());
}

void AdapterSet::merge() {
  adapters::require_mergeable(*this);
  adapters::merge_all(slots());
}

void AdapterSet::unmerge() {
  for (const auto& slot : slots()) adapters::unmerge(slot);
}

}  // namespace lora
