#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "lora/config/run_config.h"

namespace lora::config {

/// A run file that may have `stages`: what each of them runs, in order. Without stages one, without a name.
struct StagedConfig {
  struct Stage {
    std::string name;
    RunConfig config;  ///< writes into run.output_dir/name, and starts from what the stage before left there
  };
  std::vector<Stage> stages;
  RunConfig common;  ///< the run file without its stages; not checked as a whole
  bool is_staged() const { return !stages.front().name.empty(); }
};

/// As load_run_config. Each stage is the common file with the stage's sections over it (adapter, freeze, data, train, checkpoint,
/// generate, log); an override `stages.NAME.section.key=value` is one stage's. What a stage trains goes on in the next: an
/// adapter of the same method as adapter.init_from, rows of tokens as adapter.tokens_from. Throws ConfigError, also where
/// something that was trained would have no place in the next stage.
StagedConfig load_staged_config(const Path& file, const std::vector<std::string>& overrides, const Path& override_base,
                                std::string_view command);

/// The same from text.
StagedConfig parse_staged_config(std::string_view text, std::string_view name, const Path& base,
                                 const std::vector<std::string>& overrides, const Path& override_base, std::string_view command);

/// The whole as a run file: the common keys, and of each stage those that differ. Reading it gives equal stages.
std::string dump_staged_config(const StagedConfig& staged);

}  // namespace lora::config
