#include "lora/train/checkpoint.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <set>
#include <utility>

#include "core/check.h"
#include "core/copy_directory.h"
#include "lora/adapters/adapter_io.h"
#include "lora/core/file.h"
#include "lora/core/log.h"
#include "lora/io/safetensors.h"
#include "lora/ops/device.h"
#include "train/checkpoint_folder.h"
#include "train/checkpoint_manifest.h"
#include "train/checkpoint_state.h"
#include "train/device_of.h"

namespace lora::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFolder = "checkpoints";
constexpr const char* kConfig = "config.yaml";
constexpr const char* kBest = "best";
constexpr const char* kAdapter = "adapter";
constexpr const char* kTrained = "trained.safetensors";
constexpr const char* kAdapterFile = "adapter_model.safetensors";

/// What an adapter's file does not hold: the first one's, or that of the adapter's name.
std::string state_file(const AdapterSets& sets, size_t index) {
  return index == 0 ? "adapter_state.safetensors" : fmt::format("adapter_state.{}.safetensors", sets.all()[index].name());
}

/// Relative to the checkpoint.
std::string values_file(const AdapterSets& sets, size_t index) {
  return (adapter_directory(sets, index, kAdapter) / kAdapterFile).generic_string();
}

// ---- What is saved ----

/// Every parameter of the model; a tied one once, under its first name.
io::NamedTensors all_parameters(const nn::CausalLMImpl& model) {
  io::NamedTensors found;
  std::set<const at::TensorImpl*> seen;
  for (const auto& entry : nn::readable_parameters(model)) {
    if (seen.insert(entry.parameter.unsafeGetTensorImpl()).second) {
      found.emplace_back(entry.name, entry.read());
    }
  }
  return found;
}

/// What is trained besides the adapter: set free by rules of the run file.
io::NamedTensors trained_outside_adapter(const StepState& state) {
  std::set<const at::TensorImpl*> in_adapter;
  for (const auto& tensor : state.adapters.parameters()) {
    in_adapter.insert(tensor.unsafeGetTensorImpl());
  }
  io::NamedTensors found;
  for (const auto& entry : state.optimizer->parameters()) {
    if (!in_adapter.contains(entry.second.unsafeGetTensorImpl())) found.push_back(entry);
  }
  return found;
}

io::NamedTensors generator_states(const at::Device& device) {
  io::NamedTensors states = {{"cpu", generator_state(at::kCPU)}};
  if (!device.is_cpu()) states.emplace_back("device", generator_state(device));
  return states;
}

void save_values(const Path& directory, const nn::CausalLMImpl& model, const StepState& state) {
  if (!state.adapters) {
    io::save_safetensors(directory / kModel, all_parameters(model));
    return;
  }
  save_adapters(state.adapters, directory / kAdapter);
  for (size_t i = 0; i < state.adapters.size(); ++i) {
    const auto beyond = state.adapters.all()[i].training_state();
    if (beyond.empty()) continue;
    io::save_safetensors(directory / state_file(state.adapters, i), io::NamedTensors(beyond.begin(), beyond.end()));
  }
  const auto outside = trained_outside_adapter(state);
  if (!outside.empty()) io::save_safetensors(directory / kTrained, outside);
}

void save_resumable(const Path& directory, const nn::CausalLMImpl& model, const StepState& state) {
  const auto optimizer = state.optimizer->state();
  io::save_safetensors(directory / kOptimizer, io::NamedTensors(optimizer.begin(), optimizer.end()));
  io::save_safetensors(directory / kGenerator, generator_states(device_of(model)));
}

// ---- Putting back ----

using Tensors = std::map<std::string, at::Tensor>;

/// One adapter's part of a checkpoint.
struct AdapterContent {
  Tensors values;
  Tensors state;  ///< empty: the values say it all
};

/// Everything of a checkpoint, read and not yet used.
struct Content {
  Tensors model;                         ///< its parameters, without adapters
  std::vector<AdapterContent> adapters;  ///< in their order
  Tensors outside;                       ///< trained.safetensors
  Tensors optimizer, generators;
  SavedState state;
};

Content read_content(const Path& checkpoint, const AdapterSets& adapters) {
  const auto files = read_manifest(checkpoint);
  const auto load_values = [&](const std::string& name) {
    require<ShapeError>(files.contains(name),
                        "[{}] must be a checkpoint of this method; it has no {}; use the adapter "
                        "settings that it was saved with",
                        checkpoint.string(), name);
    return io::load_safetensors(checkpoint / name);
  };
  Content content;
  if (!adapters) content.model = load_values(kModel);
  for (size_t i = 0; i < adapters.size(); ++i) {
    AdapterContent& one = content.adapters.emplace_back(AdapterContent{load_values(values_file(adapters, i)), {}});
    const std::string beyond = state_file(adapters, i);
    if (files.contains(beyond)) one.state = io::load_safetensors(checkpoint / beyond);
  }
  if (files.contains(kTrained)) content.outside = io::load_safetensors(checkpoint / kTrained);
  content.optimizer = io::load_safetensors(checkpoint / kOptimizer);
  content.generators = io::load_safetensors(checkpoint / kGenerator);
  content.state = read_state(checkpoint);
  return content;
}

/// Throws ShapeError unless the saved tensors are exactly those of `targets`.
void require_same(const Tensors& saved, const io::NamedTensors& targets, const Path& checkpoint) {
  for (const auto& [name, target] : targets) {
    const auto found = saved.find(name);
    require<ShapeError>(found != saved.end() && found->second.sizes() == target.sizes(),
                        "[{}] must hold {} as [{}]; found {}; use the settings and the model that "
                        "it was saved with",
                        checkpoint.string(), name, fmt::join(target.sizes(), ", "),
                        found == saved.end() ? "none" : fmt::format("[{}]", fmt::join(found->second.sizes(), ", ")));
  }
  require<ShapeError>(saved.size() == targets.size(),
                      "[{}] must hold {} trained tensors; found {}; use the settings and the model "
                      "that it was saved with",
                      checkpoint.string(), targets.size(), saved.size());
}

void copy_into(const io::NamedTensors& targets, const Tensors& saved) {
  const at::NoGradGuard no_grad;
  for (const auto& [name, target] : targets) target.copy_(saved.at(name));
}

/// What a checkpoint holds beside the adapters' own files, and where it belongs.
std::pair<io::NamedTensors, const Tensors&> plain_values(nn::CausalLMImpl& model, const StepState& state,
                                                         const Content& content) {
  if (state.adapters) return {trained_outside_adapter(state), content.outside};
  return {all_parameters(model), content.model};
}

void require_same_values(const Path& checkpoint, nn::CausalLMImpl& model, const StepState& state, const Content& content) {
  const auto [plain, saved] = plain_values(model, state, content);
  require_same(saved, plain, checkpoint);
}

void restore_values(nn::CausalLMImpl& model, const StepState& state, const Content& content) {
  const auto [plain, saved] = plain_values(model, state, content);
  for (size_t i = 0; i < state.adapters.size(); ++i) {
    AdapterSet set = state.adapters.all()[i];
    const auto& [values, beyond] = content.adapters[i];
    beyond.empty() ? load_adapter_tensors(set, values) : set.load_training_state(beyond);
  }
  copy_into(plain, saved);
}

void restore_generator(const Path& checkpoint, const Tensors& states, const char* name, const at::Device& device) {
  const auto found = states.find(name);
  if (found == states.end()) return;
  try {
    set_generator_state(device, found->second);
  } catch (const c10::Error&) {
    fail<FormatError>("[{}] {:?} must be the state of a generator; it is not; use another checkpoint",
                      (checkpoint / kGenerator).string(), name);
  }
}

/// A checkpoint of a CPU run has no state for a GPU, whose generator then stays as it was seeded.
void restore_generators(const Path& checkpoint, const Tensors& states, const at::Device& device) {
  restore_generator(checkpoint, states, "cpu", at::kCPU);
  if (!device.is_cpu()) restore_generator(checkpoint, states, "device", device);
}

}  // namespace

Path save_checkpoint(const Path& output_dir, nn::CausalLMImpl& model, const StepState& state, const CheckpointContent& content,
                     int64_t keep) {
  require<ConfigError>(keep >= 1, "[checkpoint] keep must be at least 1; found {}; use 2", keep);
  const Path folder = output_dir / kFolder;
  const Path target = checkpoint_path(folder, state.step);
  remove_stale_temporaries(folder);

  AtomicDirectory directory(target);
  save_values(directory.path(), model, state);
  if (content.optimizer) save_resumable(directory.path(), model, state);
  if (!content.best.empty()) {
    fs::create_directory(directory.path() / kBest);
    copy_directory(content.best, directory.path() / kBest);
  }
  write_state(directory.path(), state);
  write_file_atomically(directory.path() / kConfig, content.config_yaml);
  write_manifest(directory.path());
  directory.commit();

  prune(folder, state.step, keep);
  return target;
}

void load_checkpoint(const Path& checkpoint, nn::CausalLMImpl& model, StepState& state) {
  const auto defect = verify_checkpoint(checkpoint);
  require<FormatError>(!defect, "{}; use another checkpoint", defect.value_or(""));
  require<FormatError>(can_resume(checkpoint),
                       "[{}] must hold the optimizer's state to go on from; it was saved without; "
                       "set checkpoint.save_optimizer, or start anew from its values",
                       checkpoint.string());
  const Content content = read_content(checkpoint, state.adapters);
  require_same_values(checkpoint, model, state, content);  // before anything changes
  state.optimizer->load_state(content.optimizer);
  restore_values(model, state, content);
  state.scaler.load_state(content.state.scaler);
  state.step = content.state.position.step;
  state.evaluations = content.state.position.evaluations;
  state.stopped_by = content.state.position.stopped_by;
  state.nonfinite_in_a_row = content.state.nonfinite_in_a_row;
  state.skipped_steps = content.state.skipped_steps;
  restore_generators(checkpoint, content.generators, device_of(model));
}

std::optional<std::string> verify_checkpoint(const Path& checkpoint) {
  try {
    const auto files = read_manifest(checkpoint);
    if (auto defect = missing_entry(checkpoint, files)) return defect;
    for (const auto& [name, record] : files) {
      if (auto defect = defect_of(checkpoint / name, record)) return defect;
    }
    return std::nullopt;
  } catch (const Error& error) {
    return error.what();
  }
}

std::optional<Path> newest_checkpoint(const Path& output_dir) {
  for (const auto& entry : checkpoints_in(output_dir / kFolder)) {
    const Path& checkpoint = entry.second;
    if (const auto defect = verify_checkpoint(checkpoint)) {
      log::warn(fmt::format("{}; this checkpoint is passed over", *defect));
    } else if (can_resume(checkpoint)) {
      return checkpoint;
    }
  }
  return std::nullopt;
}

void restore_best(const Path& checkpoint, const Path& target) {
  if (!fs::is_directory(checkpoint / kBest)) {
    std::error_code error;
    fs::remove_all(target, error);
    require<IoError>(!error, "[{}] must be removable; {}; remove it by hand", target.string(), error.message());
    return;
  }
  AtomicDirectory directory(target);
  copy_directory(checkpoint / kBest, directory.path());
  directory.commit();
}

RunPosition checkpoint_position(const Path& checkpoint) { return read_state(checkpoint).position; }

}  // namespace lora::train
