#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lora/core/path.h"
#include "lora/nn/causal_lm.h"
#include "lora/train/step.h"

namespace lora::train {

/// A training checkpoint `<output_dir>/checkpoints/step-N/`:
///   adapter/ (PEFT layout) or model.safetensors (every parameter, in its own type): the trained values
///   optimizer.safetensors, generator.safetensors (random state), state.json (step, scaler, ...), config.yaml
///   manifest.json: size and digest of every file, written last
/// It appears whole (temporary directory, fsync, rename) or not at all.
struct CheckpointContent {
  bool optimizer = true;        ///< false: cannot be resumed
  std::string config_yaml;      ///< the resolved run file
};

/// Writes the state after `state.step` steps and removes all but the newest `keep` checkpoints. Returns its path.
Path save_checkpoint(const Path& output_dir, nn::CausalLMImpl& model, const StepState& state,
                     const CheckpointContent& content, int64_t keep);

/// Puts model and state back as they were, random generators included. Throws FormatError, ShapeError.
void load_checkpoint(const Path& checkpoint, nn::CausalLMImpl& model, StepState& state);

/// Checks files against the manifest. Returns what is wrong, or nothing.
std::optional<std::string> verify_checkpoint(const Path& checkpoint);

/// Newest checkpoint of an output directory that verifies and can be resumed; a warning is logged for each that does
/// not verify.
std::optional<Path> newest_checkpoint(const Path& output_dir);

/// Steps done at a checkpoint, from its state.json.
int64_t checkpoint_step(const Path& checkpoint);

}  // namespace lora::train
