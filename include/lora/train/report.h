#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/path.h"
#include "lora/train/step.h"

namespace lora::train {

/// One prompt with what the model said before and after training.
struct SampleGeneration {
  std::string prompt, before, after, reference;
};

/// All that the report page shows.
struct ReportContent {
  std::string title;
  std::vector<StepResult> steps;
  std::vector<std::pair<std::string, std::string>> summary;      ///< label, value
  std::vector<std::pair<std::string, std::string>> environment;  ///< label, value
  std::string config_yaml;
  std::optional<double> eval_loss_before, eval_loss_after;
  /// AdaLoRA's modules, in the order of StepResult::ranks.
  std::vector<std::string> rank_modules = {};
  std::vector<SampleGeneration> samples;
};

/// One self-contained HTML page: curves of loss, learning rate, gradient norm, throughput and data time as inline SVG,
/// the configuration, the environment and the sample generations.
std::string report_html(const ReportContent& content);

}  // namespace lora::train
