#include "lora/eval/metric_set.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <utility>

#include "core/check.h"

namespace lora::eval {

MetricSet::MetricSet(const MetricRegistry& registry, std::span<const std::string> names, const MetricOptions& options) {
  const std::vector<std::string> known = registry.names();
  std::vector<std::pair<size_t, std::unique_ptr<Metric>>> ranked;
  for (const std::string& name : names) {
    require<ConfigError>(std::ranges::count(names, name) == 1,
                         "[metric] each must be named once; found \"{}\" twice; leave one out", name);
    std::unique_ptr<Metric> metric = registry.make(name, options);
    ranked.emplace_back(std::ranges::find(known, name) - known.begin(), std::move(metric));
  }
  std::ranges::sort(ranked, {}, [](const auto& entry) { return entry.first; });
  for (auto& [rank, metric] : ranked) metrics_.push_back(std::move(metric));
}

void MetricSet::add(std::string_view prediction, std::string_view reference) {
  for (const auto& metric : metrics_) metric->add(prediction, reference);
}

std::vector<Score> MetricSet::scores() const {
  std::vector<Score> all;
  for (const auto& metric : metrics_) std::ranges::move(metric->scores(), std::back_inserter(all));
  return all;
}

}  // namespace lora::eval
