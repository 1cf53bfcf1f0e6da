#include "lora/nn/adapter.h"

#include <algorithm>

#include "core/check.h"

namespace lora::nn {
namespace {

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

std::vector<std::string> AdapterSlot::names() const {
  std::vector<std::string> names;
  for (const auto& [name, adapter] : attached_) names.push_back(name);
  return names;
}

std::shared_ptr<Adapter> AdapterSlot::find(const std::string& name) const {
  for (const auto& [attached, adapter] : attached_) {
    if (attached == name) return adapter;
  }
  return nullptr;
}

void AdapterSlot::set_active(const std::vector<std::string>& names) {
  active_.clear();
  for (const auto& name : names) {
    if (find(name) && !contains(active_, name)) active_.push_back(name);
  }
  refresh();
}

void AdapterSlot::merge(Tensor& weight) {
  require<ConfigError>(merged_.empty(), "[adapter.merge] adapters must be merged once; found {} merged already; unmerge first",
                       fmt::join(merged_, ", "));
  if (active_.empty()) return;
  const torch::NoGradGuard no_grad;
  Tensor sum;
  for (const auto& adapter : contributing_) {
    const Tensor delta = adapter->weight_delta();
    sum = sum.defined() ? sum + delta : delta;
  }
  const Tensor merged = (weight.to(sum.scalar_type()) + sum).to(weight.scalar_type());
  require<NonFiniteError>(merged.isfinite().all().item<bool>(),
                          "[adapter.merge] merged weights must be finite; found infinite or NaN values with {}; "
                          "the weight was left as it was",
                          fmt::join(active_, ", "));
  weight.copy_(merged);
  merged_ = active_;
}

void AdapterSlot::unmerge(Tensor& weight) {
  if (merged_.empty()) return;
  const torch::NoGradGuard no_grad;
  for (const auto& name : merged_) {
    const Tensor delta = find(name)->weight_delta();
    weight.copy_((weight.to(delta.scalar_type()) - delta).to(weight.scalar_type()));
  }
  merged_.clear();
}

const std::vector<std::shared_ptr<Adapter>>& AdapterSlot::contributing() const {
  return enabled_ && merged_.empty() ? contributing_ : none_;
}

void AdapterSlot::add(const std::string& name, std::shared_ptr<Adapter> adapter) {
  require<ConfigError>(!name.empty() && name.find('.') == std::string::npos,
                       "[adapter.attach] an adapter's name must be a word without dots; found \"{}\"", name);
  require<ConfigError>(!find(name), "[adapter.attach] adapter names must be unique; found \"{}\" attached already; "
                       "choose another name or remove the first", name);
  attached_.emplace_back(name, std::move(adapter));
}

void AdapterSlot::remove(const std::string& name) {
  std::erase_if(attached_, [&](const auto& entry) { return entry.first == name; });
  std::erase(active_, name);
  refresh();
}

void AdapterSlot::refresh() {
  contributing_.clear();
  for (const auto& name : active_) contributing_.push_back(find(name));
}

}  // namespace lora::nn
