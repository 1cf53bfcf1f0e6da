#include "lora/adapters/fused_rows.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <set>

#include "adapters/module_tree.h"
#include "adapters/state.h"
#include "core/check.h"
#include "lora/adapters/lora.h"
#include "lora/nn/fused_projections.h"

namespace lora {
namespace {

/// A factor and which of its rows stay at zero.
struct Held {
  std::shared_ptr<LoraLinear> adapter;
  at::Tensor rows;
};

void require_plain_lora(const AdapterSet& adapters) {
  const auto* options = std::get_if<LoraOptions>(&adapters.options());
  require<ConfigError>(
      options != nullptr && !options->dora && adapters.biases().empty(),
      "[adapters.fused_rows] rows are chosen of a LoRA's update alone; found {}; choose another method, or leave the rows out",
      options == nullptr ? method_name(adapters.options())
      : options->dora    ? "DoRA, whose magnitudes are of every row"
                         : "biases that train, of every row");
  require<ConfigError>(adapters.state().held.empty(),
                       "[adapters.fused_rows] the rows of an adapter must be chosen once; found {:?} with rows "
                       "chosen before; make it anew",
                       adapters.name());
  require<ConfigError>(adapters.is_active(),
                       "[adapters.fused_rows] the adapter that trains must be active; found {:?} inactive; call "
                       "set_active_adapters first",
                       adapters.name());
}

/// Of the layer at a path; empty where its parent knows of none.
nn::RowsByPart rows_at(const std::map<std::string, std::shared_ptr<torch::nn::Module>>& modules, const std::string& path) {
  const std::string child = adapters::last_part(path);
  if (child.size() == path.size()) return {};
  const auto parent = modules.find(path.substr(0, path.size() - child.size() - 1));
  const auto* fused = parent == modules.end() ? nullptr : dynamic_cast<const nn::FusedProjections*>(parent->second.get());
  return fused == nullptr ? nn::RowsByPart{} : fused->rows_by_part(child);
}

void require_known(const std::vector<std::string>& parts, const std::set<std::string>& known) {
  require<ConfigError>(!known.empty(),
                       "[adapters.fused_rows] a target must compute several projections in one layer; found none that does; "
                       "leave the rows out, and name the projections in target_modules");
  require<ConfigError>(!parts.empty(), "[adapters.fused_rows] some rows must train; found none named; name some of {}",
                       fmt::join(known, ", "));
  for (const auto& part : parts) {
    require<ConfigError>(known.contains(part), "[adapters.fused_rows] rows must be some of {}; found {:?}; correct it",
                         fmt::join(known, ", "), part);
  }
}

/// Rows of parts that are not listed.
at::Tensor rows_besides(const nn::RowsByPart& rows, const std::vector<std::string>& parts, const at::Device& device) {
  std::vector<int64_t> others;
  for (const auto& [part, own] : rows) {
    if (std::ranges::find(parts, part) == parts.end()) others.insert(others.end(), own.begin(), own.end());
  }
  return at::tensor(others, at::kLong).to(device);
}

std::vector<Held> held_by(torch::nn::Module& model, const AdapterSet& adapters, const std::vector<std::string>& parts) {
  std::map<std::string, std::shared_ptr<torch::nn::Module>> modules;
  for (const auto& [path, module] : adapters::base_modules(model)) modules.emplace(path, module);
  std::set<std::string> known;
  std::vector<Held> held;
  for (const auto& slot : adapters.slots()) {
    const auto rows = rows_at(modules, slot.path);
    auto adapter = std::dynamic_pointer_cast<LoraLinear>(slot.adapter);
    if (rows.empty() || !adapter) continue;
    for (const auto& [part, own] : rows) known.insert(part);
    const at::Tensor others = rows_besides(rows, parts, adapter->lora_B.device());
    if (others.numel() == 0) continue;
    const bool are_zero = !adapter->has_start() && adapter->lora_B.detach().index_select(0, others).eq(0).all().item<bool>();
    require<ConfigError>(are_zero,
                         "[adapters.fused_rows] rows of lora_B that do not train must be zero; found others at {}; begin with "
                         "init_lora_weights true or gaussian, or with an adapter of the same rows",
                         slot.path);
    held.push_back({std::move(adapter), others});
  }
  require_known(parts, known);
  return held;
}

}  // namespace

void train_fused_rows(torch::nn::Module& model, const AdapterSet& adapters, const std::vector<std::string>& parts) {
  require_plain_lora(adapters);
  for (const auto& [adapter, rows] : held_by(model, adapters, parts)) {
    adapter->lora_B.register_hook([rows = rows](const at::Tensor& gradient) { return gradient.index_fill(0, rows, 0); });
    adapters.state().held.emplace_back(adapter->lora_B, rows.numel() * adapter->lora_B.size(1));
  }
}

int64_t num_held_numbers(const AdapterSet& adapters) {
  int64_t sum = 0;
  for (const auto& [factor, count] : adapters.state().held) sum += factor.requires_grad() ? count : 0;
  return sum;
}

}  // namespace lora
