#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lora/eval/metric.h"
#include "lora/eval/metric_registry.h"

namespace lora::eval {

/// Several metrics over the same rows.
class MetricSet {
 public:
  /// Metrics of these names in the registry's order, whatever that of `names`. Throws ConfigError
  /// for a name that is unknown or given twice.
  MetricSet(const MetricRegistry& registry, std::span<const std::string> names, const MetricOptions& options = {});

  /// Takes a row into every metric. Throws what they throw; metrics before that one have the row
  /// then.
  void add(std::string_view prediction, std::string_view reference);
  std::vector<Score> scores() const;

 private:
  std::vector<std::unique_ptr<Metric>> metrics_;
};

}  // namespace lora::eval
