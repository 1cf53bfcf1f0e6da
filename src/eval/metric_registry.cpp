#include "lora/eval/metric_registry.h"

#include <algorithm>

#include "core/check.h"
#include "eval/builtin_metrics.h"
#include "lora/core/text.h"

namespace lora::eval {
namespace {

/// Of the process: what programs added.
std::vector<std::pair<std::string, MetricRegistry::Factory>>& added() {
  static std::vector<std::pair<std::string, MetricRegistry::Factory>> metrics;
  return metrics;
}

}  // namespace

MetricRegistry::MetricRegistry() {
  register_metric("rouge", make_rouge);
  register_metric("bleu4", make_bleu4);
  register_metric("exact_match", make_exact_match);
  for (const auto& [name, make] : added()) register_metric(name, make);
}

const MetricRegistry::Factory* MetricRegistry::find(std::string_view name) const {
  const auto found = std::ranges::find_if(factories_, [&](const auto& entry) { return entry.first == name; });
  return found != factories_.end() ? &found->second : nullptr;
}

void MetricRegistry::register_metric(std::string name, Factory make) {
  require<ConfigError>(!name.empty() && find(name) == nullptr,
                       "[metric] a new metric must have a name of its own; found \"{}\"; taken are {}", name,
                       fmt::join(names(), ", "));
  require<ConfigError>(make != nullptr, "[metric] a new metric must have a function that makes it; found none for \"{}\"", name);
  factories_.emplace_back(std::move(name), std::move(make));
}

void register_metric(std::string name, MetricRegistry::Factory make) {
  MetricRegistry().register_metric(name, make);  // refuses what has no place in any registry
  added().emplace_back(std::move(name), std::move(make));
}

std::vector<std::string> MetricRegistry::names() const {
  std::vector<std::string> names;
  for (const auto& [name, make] : factories_) names.push_back(name);
  return names;
}

std::unique_ptr<Metric> MetricRegistry::make(std::string_view name, const MetricOptions& options) const {
  const Factory* const make = find(name);
  if (make != nullptr) return (*make)(options);
  const std::vector<std::string> known = names();
  fail<ConfigError>("[metric] must be one of {}; found \"{}\"; did you mean {}?", fmt::join(known, ", "), name,
                    nearest_names(name, known, 1).front());
}

}  // namespace lora::eval
