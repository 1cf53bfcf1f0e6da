#include "cli/run_directory.h"

#include <algorithm>
#include <set>

#include "cli/adapter_setup.h"
#include "cli/prediction_file.h"
#include "core/check.h"
#include "lora/core/file.h"
#include "lora/core/log.h"
#include "lora/train/checkpoint.h"

namespace lora::cli {
namespace {

constexpr const char* kUnfinished = "unfinished";

/// What lora eval and lora predict leave, whose model a new run does not change.
const std::set<std::string>& entries_of_evaluations() {
  static const std::set<std::string> kNames = {kEvaluation, kPredictions, part_of(kPredictions), kEvaluatedAnswers,
                                               part_of(kEvaluatedAnswers)};
  return kNames;
}

/// Everything that a run, and an evaluation of what it made, writes into its directory.
std::set<std::string> own_entries(const config::RunConfig& config) {
  std::set<std::string> names = entries_of_evaluations();
  names.insert({"config.yaml", kUnfinished, config.log.metrics.string(), "adapter", "base", "best", "model", "checkpoints",
                "report.html"});
  return names;
}

/// The metrics in a folder of their own, which may hold other files.
bool is_folder_of_metrics(const std::string& name, const config::RunConfig& config) {
  const Path metrics = config.log.metrics.lexically_normal();
  return metrics.has_parent_path() && name == metrics.begin()->string();
}

/// What may be lost when a run starts again: the configuration, the metrics, temporary files, a base that it made and the best
/// result of a run that saved no other.
bool is_leftover(const std::string& name, const config::RunConfig& config) {
  if (name == "best" && config.checkpoint.keep_best) return true;
  if (name == "base" && own_base(config)) return true;
  return name == "config.yaml" || name == kUnfinished || name == config.log.metrics || name.find(".tmp-") != std::string::npos;
}

std::vector<std::string> entries_of(const Path& directory) {
  std::vector<std::string> names;
  if (!std::filesystem::is_directory(directory)) return names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// An empty `checkpoints` folder holds nothing to lose.
bool is_empty_checkpoints(const Path& directory, const std::string& name) {
  return name == "checkpoints" && std::filesystem::is_directory(directory / name) &&
         std::all_of(std::filesystem::directory_iterator(directory / name), std::filesystem::directory_iterator(),
                     [](const auto& entry) { return entry.path().string().find(".tmp-") != std::string::npos; });
}

/// Tokens are found by the content of the data, so that they fit a new run as well as the old one, or are not used.
bool is_token_cache(const Path& directory, const std::string& name) {
  return name == "cache" && std::filesystem::is_directory(directory / name) &&
         std::all_of(std::filesystem::directory_iterator(directory / name), std::filesystem::directory_iterator(),
                     [](const auto& entry) { return entry.path().filename().string().find(".tokens") != std::string::npos; });
}

/// What lora prepare leaves beside a run.
bool is_records(const Path& directory, const std::string& name) {
  return name == "records" && std::filesystem::is_directory(directory / name);
}

void check_unchanged(const Path& checkpoint, const config::RunConfig& config, const std::vector<std::string>& allowed) {
  const Path file = checkpoint / "config.yaml";
  const auto before = config::parse_run_config(read_file(file), file.string(), checkpoint, {}, checkpoint, *config.run.mode);
  std::vector<std::string> changes;
  for (const auto& difference : config::result_changing_differences(before, config)) {
    if (std::find(allowed.begin(), allowed.end(), difference.key) != allowed.end()) continue;
    changes.push_back(fmt::format("{}: {} -> {}", difference.key, difference.before, difference.after));
  }
  require<ConfigError>(changes.empty(),
                       "[run.resume] a resumed run must have the run file that it began with; {} changed: {}; put it "
                       "back, allow it with --allow-changed KEY, or start anew with run.resume=none and --overwrite",
                       changes.size(), fmt::join(changes, ", "));
}

RunStart resume_from(const Path& checkpoint, const config::RunConfig& config, const std::vector<std::string>& allowed) {
  check_unchanged(checkpoint, config, allowed);
  const int64_t step = train::checkpoint_position(checkpoint).step;
  log::info(fmt::format("resuming from {} (step {})", checkpoint.string(), step));
  RunStart start;
  start.checkpoint = checkpoint;
  start.first_step = step;
  return start;
}

RunStart start_anew(const config::RunConfig& config, bool overwrite) {
  const Path& directory = config.run.output_dir;
  const auto own = overwrite ? own_entries(config) : std::set<std::string>();
  RunStart start;
  for (const auto& name : entries_of(directory)) {
    if (is_token_cache(directory, name) || is_records(directory, name)) continue;
    if (!overwrite && config.run.resume == "auto" && entries_of_evaluations().contains(name)) continue;
    const bool is_of_metrics = is_folder_of_metrics(name, config);
    const bool may_go = is_leftover(name, config) || is_empty_checkpoints(directory, name) || is_of_metrics;
    const bool resume_auto = config.run.resume == "auto";
    require<ConfigError>(own.contains(name) || (is_of_metrics && overwrite) || (may_go && resume_auto),
                         "[run.output_dir] a new run needs an empty directory; {} holds {}; choose another output_dir{}",
                         directory.string(), name,
                         overwrite ? fmt::format(" or move {} away, which no run writes", name)
                                   : fmt::format("{} or pass --overwrite", resume_auto ? "" : ", resume: auto"));
    start.obsolete.push_back(directory / (is_of_metrics ? config.log.metrics : Path(name)));
  }
  return start;
}

}  // namespace

RunStart decide_run_start(const config::RunConfig& config, bool overwrite, const std::vector<std::string>& allowed) {
  const Path& directory = config.run.output_dir;
  require_writable(directory);
  remove_stale_temporaries(directory);
  const std::string& resume = config.run.resume;
  if (resume == "none" || overwrite) return start_anew(config, overwrite);
  if (resume != "auto") {
    const auto problem = train::verify_checkpoint(resume);
    if (problem) fail<FormatError>("[run.resume] the checkpoint must be whole; {}", *problem);
    return resume_from(resume, config, allowed);
  }
  if (const auto checkpoint = train::newest_checkpoint(directory)) return resume_from(*checkpoint, config, allowed);
  return start_anew(config, overwrite);
}

void require_no_followers(const RunStart& start) {
  for (const Path& follower : start.followers) {
    const bool goes = std::find(start.obsolete.begin(), start.obsolete.end(), follower) != start.obsolete.end();
    require<ConfigError>(
        goes || !train::newest_checkpoint(follower),
        "[stages] a stage must be finished before the next begins; found steps of the later stage {} beside more to do; "
        "pass --overwrite to start anew",
        follower.filename().string());
  }
}

void clear_obsolete(const RunStart& start) {
  for (const auto& path : start.obsolete) std::filesystem::remove_all(path);
}

void mark_unfinished(const config::RunConfig& config) { write_file_atomically(config.run.output_dir / kUnfinished, ""); }
void mark_finished(const config::RunConfig& config) { std::filesystem::remove(config.run.output_dir / kUnfinished); }
bool is_marked_unfinished(const config::RunConfig& config) {
  return std::filesystem::exists(config.run.output_dir / kUnfinished);
}

}  // namespace lora::cli
