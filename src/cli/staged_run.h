// A run file with stages: one run after another, each in a folder of its own.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cli/run_directory.h"
#include "lora/config/stages.h"

namespace lora::cli {

/// Runs one configuration from a start; the exit code.
using RunOne = std::function<int(const config::RunConfig& config, const RunStart& start)>;

/// Runs the stages that are not finished, each from what the one before left, then puts the last one's adapter into
/// output_dir/adapter. Stops with the first exit code that is not kDone. Throws ConfigError like decide_run_start, for each stage
/// in its folder.
int run_stages(const config::StagedConfig& staged, bool overwrite, const std::vector<std::string>& allowed,
               const RunOne& run_one);

}  // namespace lora::cli
