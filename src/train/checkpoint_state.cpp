#include "train/checkpoint_state.h"

#include "train/checkpoint_json.h"
#include "train/checkpoint_manifest.h"

namespace lora::train {
namespace {

using formats::Json;

Json evaluations_json(const EvalHistory& history) {
  const auto number_or_null = [](const std::optional<double>& loss) { return loss ? Json(*loss) : Json(); };
  return {{"best_loss", number_or_null(history.best_loss)},
          {"best_step", history.best_step},
          {"improved_loss", number_or_null(history.improved_loss)},
          {"without_improvement", history.without_improvement}};
}

Json state_json(const StepState& state) {
  const auto scaler = state.scaler.state();
  return {{"format", kCheckpointFormat},
          {"step", state.step},
          {"nonfinite_in_a_row", state.nonfinite_in_a_row},
          {"skipped_steps", state.skipped_steps},
          {"scaler", {{"scale", scaler.scale}, {"finite_steps", scaler.finite_steps}}},
          {"evaluations", evaluations_json(state.evaluations)},
          {"stopped_by", state.stopped_by}};
}

/// A finite number, or nothing for null.
std::optional<double> loss_member(const Json& object, const char* key, const Path& path) {
  if (member<Json>(object, key, path).is_null()) return std::nullopt;
  return member<double>(object, key, path);
}

EvalHistory read_evaluations(const Json& json, const Path& path) {
  return {.best_loss = loss_member(json, "best_loss", path),
          .best_step = member<int64_t>(json, "best_step", path),
          .improved_loss = loss_member(json, "improved_loss", path),
          .without_improvement = member<int64_t>(json, "without_improvement", path)};
}

/// Checkpoints of earlier versions say nothing of evaluations and skipped steps, which they did not compare.
Json with_newer_members(Json json) {
  if (!json.is_object()) return json;
  json.emplace("skipped_steps", 0);
  json.emplace("evaluations", evaluations_json({}));
  json.emplace("stopped_by", "");
  return json;
}

}  // namespace

void write_state(const Path& directory, const StepState& state) {
  write_file_atomically(directory / kState, state_json(state).dump(2) + "\n");
}

SavedState read_state(const Path& checkpoint) {
  const Path path = checkpoint / kState;
  const Json json = with_newer_members(read_json(path));
  require_format(json, path);
  SavedState state;
  RunPosition& position = state.position;
  position = {.step = member<int64_t>(json, "step", path),
              .evaluations = read_evaluations(member<Json>(json, "evaluations", path), path),
              .stopped_by = member<std::string>(json, "stopped_by", path)};
  state.nonfinite_in_a_row = member<int64_t>(json, "nonfinite_in_a_row", path);
  state.skipped_steps = member<int64_t>(json, "skipped_steps", path);
  const auto is_count_of_steps = [&](int64_t count) { return count >= 0 && count <= position.step; };
  for (const int64_t count : {position.step, state.nonfinite_in_a_row, state.skipped_steps, position.evaluations.best_step,
                              position.evaluations.without_improvement}) {
    require<FormatError>(is_count_of_steps(count),
                         "[{}] counts must be from 0 to the steps done, {}; found {}; use another checkpoint", path.string(),
                         position.step, count);
  }
  const auto scaler = member<Json>(json, "scaler", path);
  state.scaler = {member<double>(scaler, "scale", path), member<int64_t>(scaler, "finite_steps", path)};
  return state;
}

}  // namespace lora::train
