#pragma once

#include <memory>

#include "lora/eval/metric.h"
#include "lora/eval/metric_registry.h"

namespace lora::eval {

// The metrics that every MetricRegistry knows; they are described there.
std::unique_ptr<Metric> make_rouge(const MetricOptions& options);
std::unique_ptr<Metric> make_bleu4(const MetricOptions& options);
std::unique_ptr<Metric> make_exact_match(const MetricOptions& options);

}  // namespace lora::eval
