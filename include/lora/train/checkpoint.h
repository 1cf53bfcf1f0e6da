#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "lora/core/path.h"
#include "lora/nn/causal_lm.h"
#include "lora/train/step.h"

namespace lora::train {

/// A training checkpoint `<output_dir>/checkpoints/step-N/`:
///   adapter/ (PEFT layout) with adapter_state.safetensors (what that layout cannot hold: AdaLoRA's pruned ranks and
///   averages, networks of virtual tokens) and trained.safetensors (what else trains, by the run file's rules),
///   or model.safetensors (every parameter, in its own type): the values optimizer.safetensors,
///   generator.safetensors (random state), state.json (step, scaler, evaluations, ...), config.yaml
///   best/ the result of the best evaluation so far, where the run keeps it
///   manifest.json: size and digest of every file, written last
/// It appears whole (temporary directory, fsync, rename) or not at all.
struct CheckpointContent {
  bool optimizer = true;    ///< false: cannot be resumed
  std::string config_yaml;  ///< the resolved run file
  Path best = {};           ///< a directory with the best result so far, to be copied; empty: none
};

/// Writes the state after `state.step` steps. Then removes other checkpoints, but for the `keep` -
/// 1 (keep >= 1) newest before it: those of later steps are of a run that was given up by going on
/// from an earlier one. Returns its path. Throws IoError, ConfigError.
Path save_checkpoint(const Path& output_dir, nn::CausalLMImpl& model, const StepState& state, const CheckpointContent& content,
                     int64_t keep);

/// Puts model and state back as they were, random generators included, after verifying the files.
/// Model, adapters and optimizer must be made already, as for the run that saved them. Throws
/// FormatError (also for one saved without optimizer), ShapeError, IoError.
void load_checkpoint(const Path& checkpoint, nn::CausalLMImpl& model, StepState& state);

/// Checks sizes and digests of all files against the manifest. Returns what is wrong, or nothing.
std::optional<std::string> verify_checkpoint(const Path& checkpoint);

/// Newest checkpoint of an output directory that verifies and can be resumed; a warning is logged
/// for each that does not verify.
std::optional<Path> newest_checkpoint(const Path& output_dir);

/// Puts the best result that a checkpoint holds to `target`, whole or not at all; when it holds none, removes what is there.
/// Throws IoError.
void restore_best(const Path& checkpoint, const Path& target);

/// How far a run had come at a checkpoint.
struct RunPosition {
  int64_t step = 0;  ///< steps done
  EvalHistory evaluations;
  std::string stopped_by;  ///< see StepState
};

/// From a checkpoint's state.json. Throws IoError, FormatError.
RunPosition checkpoint_position(const Path& checkpoint);

}  // namespace lora::train
