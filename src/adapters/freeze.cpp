#include "lora/adapters/freeze.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "core/check.h"
#include "lora/adapters/adalora.h"
#include "lora/adapters/fused_rows.h"
#include "lora/core/pattern.h"
#include "lora/core/text.h"
#include "lora/nn/linear.h"

namespace lora {
namespace {

struct Parameter {
  std::string name;
  at::Tensor value;
  std::shared_ptr<nn::LinearImpl> layer;  ///< whose weight it is; null for other parameters
};
using Parameters = std::vector<Parameter>;

Parameters parameters_of(const torch::nn::Module& model) {
  std::map<const at::TensorImpl*, std::shared_ptr<nn::LinearImpl>> layers;
  for (const auto& module : model.modules(/*include_self=*/false)) {
    const auto layer = std::dynamic_pointer_cast<nn::LinearImpl>(module);
    if (layer) layers.emplace(layer->weight.unsafeGetTensorImpl(), layer);
  }
  Parameters found;
  for (const auto& entry : model.named_parameters()) {
    const auto layer = layers.find(entry.value().unsafeGetTensorImpl());
    found.push_back({entry.key(), entry.value(), layer == layers.end() ? nullptr : layer->second});
  }
  return found;
}

void freeze(at::Tensor& parameter) {
  parameter.set_requires_grad(false);
  parameter.mutable_grad() = at::Tensor();
}

/// Gradients in fp16 underflow or overflow; those in bf16 do not, and the optimizer keeps what small updates add up to.
void free_for_training(at::Tensor& parameter) {
  if (!parameter.is_floating_point()) return;
  if (parameter.scalar_type() == at::kHalf) parameter.set_data(parameter.detach().to(at::kFloat));
  parameter.set_requires_grad(true);
}

/// Whoever trains a weight must find it: a released one is made anew.
void free_for_training(Parameter& parameter) {
  if (parameter.layer) parameter.layer->restore_weight();
  free_for_training(parameter.value);
}

template <class Change>
void apply_to_matching(Parameters& parameters, const std::vector<std::string>& expressions, const char* option,
                       const Change& change) {
  for (const auto& expression : expressions) {
    const NamePattern pattern(expression, option);
    bool matched = false;
    for (auto& parameter : parameters) {
      if (!pattern.matches_part(parameter.name)) continue;
      change(parameter);
      matched = true;
    }
    if (matched) continue;
    std::vector<std::string> names;
    for (const auto& entry : parameters) names.push_back(entry.name);
    fail<ConfigError>(
        "[{}] every expression must match a parameter; found no match for {:?}; near names are: "
        "{}; correct "
        "or remove it",
        option, expression, fmt::join(nearest_names(expression, names), ", "));
  }
}

FreezeReport report_of(const Parameters& parameters) {
  FreezeReport report;
  std::set<const at::TensorImpl*> seen;
  for (const auto& [name, parameter, layer] : parameters) {
    if (!seen.insert(parameter.unsafeGetTensorImpl()).second) continue;
    report.total += parameter.numel();
    if (!parameter.requires_grad()) continue;
    report.trainable += parameter.numel();
    report.trainable_names.push_back(name);
  }
  return report;
}

FreezeReport apply_rules(Parameters& parameters, const FreezeRules& rules) {
  apply_to_matching(parameters, rules.freeze, "freeze", [](Parameter& parameter) { freeze(parameter.value); });
  apply_to_matching(parameters, rules.train, "train", [](Parameter& parameter) { free_for_training(parameter); });
  auto report = report_of(parameters);
  require<ConfigError>(report.trainable > 0,
                       "[adapters.freeze] something must be left to train; found none of {} "
                       "parameters trainable; loosen "
                       "the freeze rules",
                       with_thousands(report.total));
  return report;
}

/// AdaLoRA compares the importances of all its modules, which are measured by gradients.
void require_importances(const AdapterSet& set) {
  if (!set.allocator()) return;
  for (const auto& slot : set.slots()) {
    if (std::dynamic_pointer_cast<AdaLoraLinear>(slot.adapter) == nullptr) continue;
    const auto parameters = slot.adapter->parameters();
    require<ConfigError>(std::ranges::all_of(parameters, [](const at::Tensor& parameter) { return parameter.requires_grad(); }),
                         "[adapters.freeze] all modules of AdaLoRA must train, since it shares ranks out among them; found {:?} "
                         "frozen; leave it out of target_modules instead (layers_to_transform, exclude_modules)",
                         slot.path);
  }
}

}  // namespace

std::string FreezeReport::summary() const {
  const double percent = total == 0 ? 0 : 100 * static_cast<double>(trainable) / static_cast<double>(total);
  return fmt::format("trainable params: {} || all params: {} || trainable%: {:.4f}", with_thousands(trainable),
                     with_thousands(total), percent);
}

FreezeReport freeze_base(torch::nn::Module& model, const AdapterSet& adapters, const FreezeRules& rules) {
  return freeze_base(model, std::vector{adapters}, rules);
}

FreezeReport freeze_base(torch::nn::Module& model, const std::vector<AdapterSet>& adapters, const FreezeRules& rules) {
  for (const auto& set : adapters) {
    require<ConfigError>(set.is_active(),
                         "[adapters.freeze] the adapter that trains must be active; found {:?} inactive; call "
                         "set_active_adapters first",
                         set.name());
  }
  auto parameters = parameters_of(model);
  for (auto& entry : parameters) freeze(entry.value);
  for (const auto& set : adapters) {
    for (auto& parameter : set.parameters()) free_for_training(parameter);
  }
  FreezeReport report = apply_rules(parameters, rules);
  for (const auto& set : adapters) require_importances(set);
  for (const auto& set : adapters) report.trainable -= num_held_numbers(set);
  return report;
}

FreezeReport train_all(torch::nn::Module& model, const FreezeRules& rules) {
  auto parameters = parameters_of(model);
  for (auto& entry : parameters) free_for_training(entry);
  return apply_rules(parameters, rules);
}

}  // namespace lora
