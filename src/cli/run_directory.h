// The output directory of a run: whether it may be used, and what a resumed run starts from.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "lora/config/run_config.h"
#include "lora/core/path.h"

namespace lora::cli {

struct RunStart {
  std::optional<Path> checkpoint;     ///< resume from here; nothing: start at step 1
  int64_t first_step = 0;             ///< steps already done
  std::vector<Path> followers;        ///< folders of runs that start from what this one leaves
  std::map<Path, std::string> notes;  ///< files beside its own, by their texts, to be written once this run can begin
  std::vector<Path> obsolete;         ///< what an earlier or killed run left, to be removed once this run can begin
};

/// Decides by run.resume and what the directory holds; creates it, but removes no output yet: a run that cannot begin
/// (a wrong path, bad data) must leave an earlier one's result. Obsolete is what a killed run left, or with `overwrite`
/// everything that an earlier run wrote. Throws ConfigError when output would be overwritten silently, or when the run
/// file changed in a way that changes the result (keys in `allowed` aside).
RunStart decide_run_start(const config::RunConfig& config, bool overwrite, const std::vector<std::string>& allowed);

/// Throws ConfigError when a run that started from this one's result has steps behind it, which this run would change.
void require_no_followers(const RunStart& start);

/// Removes what is obsolete.
void clear_obsolete(const RunStart& start);

/// A file in the directory stands for a run from its beginning until all of its result is there.
void mark_unfinished(const config::RunConfig& config);
void mark_finished(const config::RunConfig& config);
bool is_marked_unfinished(const config::RunConfig& config);

/// What `lora eval` and `lora predict` write into a run's directory.
constexpr const char *kEvaluation = "eval.json", *kPredictions = "predictions.jsonl",
                     *kEvaluatedAnswers = "eval_predictions.jsonl";

}  // namespace lora::cli
