#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/eval/metric.h"
#include "lora/eval/segmenter.h"

namespace lora::eval {

/// What metrics may need besides the rows.
struct MetricOptions {
  std::shared_ptr<const Segmenter> segmenter = std::make_shared<CharSegmenter>();  ///< never null
};

/// Metrics by name. A new registry knows, in this order,
/// - `rouge`: rouge-1, rouge-2, rouge-l, the f of lora::eval::rouge on the segmenter's tokens
/// without white space;
/// - `bleu4`: bleu-4, that of lora::eval::bleu4;
/// - `exact_match`: exact-match, rows whose prediction is the reference byte by byte;
/// - those of lora::eval::register_metric.
class MetricRegistry {
 public:
  using Factory = std::function<std::unique_ptr<Metric>(const MetricOptions&)>;

  MetricRegistry();

  /// Adds a metric behind the others. Throws ConfigError for a name that is empty or taken, and for no function.
  void register_metric(std::string name, Factory make);
  /// In the order of registration.
  std::vector<std::string> names() const;
  /// A fresh metric. Throws ConfigError, with the nearest name, for an unknown one.
  std::unique_ptr<Metric> make(std::string_view name, const MetricOptions& options = {}) const;

 private:
  const Factory* find(std::string_view name) const;

  std::vector<std::pair<std::string, Factory>> factories_;
};

/// Makes a metric known to this process, in every registry that is made afterwards; before any run file is read. Throws as
/// MetricRegistry::register_metric.
void register_metric(std::string name, MetricRegistry::Factory make);

}  // namespace lora::eval
