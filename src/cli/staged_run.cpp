#include "cli/staged_run.h"

#include <algorithm>

#include "cli/command.h"
#include "core/check.h"
#include "core/copy_directory.h"
#include "lora/core/file.h"
#include "lora/core/log.h"

namespace lora::cli {
namespace {

/// Nothing but what a run with these stages writes.
void require_own_entries(const config::StagedConfig& staged) {
  const Path& directory = staged.common.run.output_dir;
  if (!std::filesystem::is_directory(directory)) return;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    const bool is_stage = std::ranges::any_of(staged.stages, [&](const auto& stage) { return stage.name == name; });
    const bool is_own =
        is_stage || name == "config.yaml" || name == "adapter" || name == "cache" || name.find(".tmp-") != std::string::npos;
    require<ConfigError>(is_own,
                         "[run.output_dir] a run with stages needs a folder of its own; {} holds {}; choose another output_dir",
                         directory.string(), name);
  }
}

void publish_adapter(const Path& from, const Path& to) {
  AtomicDirectory directory(to);
  copy_directory(from, directory.path());
  directory.commit();
}

}  // namespace

int run_stages(const config::StagedConfig& staged, bool overwrite, const std::vector<std::string>& allowed,
               const RunOne& run_one) {
  require_own_entries(staged);
  const Path& directory = staged.common.run.output_dir;
  for (size_t i = 0; i < staged.stages.size(); ++i) {
    const auto& [name, config] = staged.stages[i];
    RunStart start = decide_run_start(config, overwrite, allowed);
    for (size_t later = i + 1; later < staged.stages.size(); ++later)
      start.followers.push_back(staged.stages[later].config.run.output_dir);
    if (overwrite && i == 0) {
      start.obsolete.insert(start.obsolete.end(), start.followers.begin(), start.followers.end());
      start.obsolete.push_back(directory / "adapter");
    }
    log::info(fmt::format("stage {} of {}: {}", i + 1, staged.stages.size(), name));
    start.notes = {{directory / "config.yaml", dump_staged_config(staged)}};
    if (const int code = run_one(config, start); code != kDone) return code;
  }
  publish_adapter(staged.stages.back().config.run.output_dir / "adapter", directory / "adapter");
  fmt::print("adapter  {}\n", (directory / "adapter").string());
  return kDone;
}

}  // namespace lora::cli
