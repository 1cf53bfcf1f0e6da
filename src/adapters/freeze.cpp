#include "lora/adapters/freeze.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <set>
#include <utility>

#include "core/check.h"
#include "lora/core/pattern.h"
#include "lora/core/text.h"
#include "lora/nn/linear.h"

namespace lora {
namespace {

using NamedParameters = std::vector<std::pair<std::string, at::Tensor>>;

NamedParameters parameters_of(const torch::nn::Module& model) {
  NamedParameters found;
  for (const auto& parameter : model.named_parameters())
    found.emplace_back(parameter.key(), parameter.value());
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

template <class Change>
void apply_to_matching(NamedParameters& parameters, const std::vector<std::string>& expressions,
                       const char* option, const Change& change) {
  for (const auto& expression : expressions) {
    const NamePattern pattern(expression, option);
    bool matched = false;
    for (auto& [name, parameter] : parameters) {
      if (!pattern.matches_part(name)) continue;
      change(parameter);
      matched = true;
    }
    if (matched) continue;
    std::vector<std::string> names;
    for (const auto& entry : parameters) names.push_back(entry.first);
    fail<ConfigError>(
        "[{}] every expression must match a parameter; found no match for {:?}; near names are: "
        "{}; correct "
        "or remove it",
        option, expression, fmt::join(nearest_names(expression, names), ", "));
  }
}

FreezeReport report_of(const NamedParameters& parameters) {
  FreezeReport report;
  std::set<const at::TensorImpl*> seen;
  for (const auto& [name, parameter] : parameters) {
    if (!seen.insert(parameter.unsafeGetTensorImpl()).second) continue;
    report.total += parameter.numel();
    if (!parameter.requires_grad()) continue;
    report.trainable += parameter.numel();
    report.trainable_names.push_back(name);
  }
  return report;
}

FreezeReport apply_rules(NamedParameters& parameters, const FreezeRules& rules) {
  apply_to_matching(parameters, rules.freeze, "freeze", freeze);
  apply_to_matching(parameters, rules.train, "train", free_for_training);
  auto report = report_of(parameters);
  require<ConfigError>(report.trainable > 0,
                       "[adapters.freeze] something must be left to train; found none of {} "
                       "parameters trainable; loosen "
                       "the freeze rules",
                       with_thousands(report.total));
  return report;
}

}  // namespace

std::string FreezeReport::summary() const {
  const double percent =
      total == 0 ? 0 : 100 * static_cast<double>(trainable) / static_cast<double>(total);
  return fmt::format("trainable params: {} || all params: {} || trainable%: {:.4f}",
                     with_thousands(trainable), with_thousands(total), percent);
}

FreezeReport freeze_base(torch::nn::Module& model, const AdapterSet& adapters,
                         const FreezeRules& rules) {
  require<ConfigError>(
      adapters.is_active(),
      "[adapters.freeze] the adapter that trains must be active; found {:?} inactive; call "
      "set_active_adapters first",
      adapters.name());
  nn::restore_weights(model);  // whoever trains a weight must find it
  auto parameters = parameters_of(model);
  auto trained = adapters.parameters();
  for (auto& entry : parameters) freeze(entry.second);
  for (auto& parameter : trained) free_for_training(parameter);
  return apply_rules(parameters, rules);
}

FreezeReport train_all(torch::nn::Module& model, const FreezeRules& rules) {
  nn::restore_weights(model);  // whoever trains a weight must find it
  auto parameters = parameters_of(model);
  for (auto& entry : parameters) free_for_training(entry.second);
  return apply_rules(parameters, rules);
}

}  // namespace lora
