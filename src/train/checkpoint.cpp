#include "lora/train/checkpoint.h"

#include <ATen/ATen.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <set>
#include <string_view>
#include <type_traits>
#include <utility>

#include "core/check.h"
#include "core/copy_directory.h"
#include "formats/json.h"
#include "lora/adapters/adapter_io.h"
#include "lora/core/file.h"
#include "lora/core/log.h"
#include "lora/io/safetensors.h"
#include "lora/ops/device.h"
#include "train/device_of.h"

namespace lora::train {
namespace {

namespace fs = std::filesystem;
using formats::Json;

constexpr int64_t kFormat = 1;
constexpr const char* kFolder = "checkpoints";
constexpr std::string_view kPrefix = "step-";
constexpr const char* kManifest = "manifest.json";
constexpr const char* kState = "state.json";
constexpr const char* kConfig = "config.yaml";
constexpr const char* kBest = "best";
constexpr const char* kAdapter = "adapter";
constexpr const char* kAdapterWeights = "adapter/adapter_model.safetensors";
constexpr const char* kModel = "model.safetensors";
constexpr const char* kTrained = "trained.safetensors";
constexpr const char* kAdapterFile = "adapter_model.safetensors";
constexpr const char* kOptimizer = "optimizer.safetensors";
constexpr const char* kGenerator = "generator.safetensors";

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

Json evaluations_json(const EvalHistory& history) {
  const auto number_or_null = [](const std::optional<double>& loss) { return loss ? Json(*loss) : Json(); };
  return {{"best_loss", number_or_null(history.best_loss)},
          {"best_step", history.best_step},
          {"improved_loss", number_or_null(history.improved_loss)},
          {"without_improvement", history.without_improvement}};
}

Json state_json(const StepState& state) {
  const auto scaler = state.scaler.state();
  return {{"format", kFormat},
          {"step", state.step},
          {"nonfinite_in_a_row", state.nonfinite_in_a_row},
          {"skipped_steps", state.skipped_steps},
          {"scaler", {{"scale", scaler.scale}, {"finite_steps", scaler.finite_steps}}},
          {"evaluations", evaluations_json(state.evaluations)},
          {"stopped_by", state.stopped_by}};
}

Json manifest_json(const Path& directory) {
  Json files = Json::object();
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    if (!entry.is_regular_file()) continue;
    files[entry.path().lexically_relative(directory).generic_string()] = {{"size", entry.file_size()},
                                                                          {"digest", file_digest(entry.path())}};
  }
  return {{"format", kFormat}, {"files", files}};
}

// ---- Which there are ----

/// N of a directory named step-N.
std::optional<int64_t> step_of_name(const Path& path) {
  const std::string name = path.filename().string();
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (error != std::errc() || stop != end || step < 0) return std::nullopt;
  return step;
}

/// Checkpoints of a folder by step, newest first.
std::vector<std::pair<int64_t, Path>> checkpoints_in(const Path& folder) {
  std::vector<std::pair<int64_t, Path>> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const auto step = step_of_name(entry.path());
    if (step && entry.is_directory(error)) found.emplace_back(*step, entry.path());
  }
  std::ranges::sort(found, std::greater<>());
  return found;
}

/// Removes a checkpoint so that a half-removed one is never seen: it loses its name first.
void remove_checkpoint(const Path& checkpoint) {
  Path doomed = checkpoint;
  doomed += fmt::format(".tmp-{}-0", ::getpid());
  std::error_code error;
  fs::remove_all(doomed, error);
  fs::rename(checkpoint, doomed, error);
  if (!error) fs::remove_all(doomed, error);
  if (error) {
    log::warn(fmt::format("[{}] an old checkpoint should go; {}; remove it by hand", checkpoint.string(), error.message()));
  }
}

/// Keeps `current` and the newest before it. Those of later steps belong to a run that was given up
/// for an earlier checkpoint.
void prune(const Path& folder, int64_t current, int64_t keep) {
  int64_t kept = 1;
  for (const auto& [step, path] : checkpoints_in(folder)) {
    if (step == current) continue;
    if (step < current && kept < keep) {
      ++kept;
    } else {
      remove_checkpoint(path);
    }
  }
}

// ---- Reading ----

constexpr uint64_t kMaxJsonBytes = 16u << 20;

Json read_json(const Path& path) { return formats::parse_json(read_file(path, kMaxJsonBytes), path.string()); }

/// A member of the type that `get` wants; FormatError for none or another type.
template <class T>
T member(const Json& object, const char* key, const Path& path) {
  constexpr const char* kText = "[{}] must hold {:?} in its proper type; it does not; use another checkpoint";
  try {
    const Json& value = object.at(key);
    // The library would cut 1.5 to 1.
    if constexpr (std::is_integral_v<T>) require<FormatError>(value.is_number_integer(), kText, path.string(), key);
    return value.get<T>();
  } catch (const Json::exception&) {
    fail<FormatError>(kText, path.string(), key);
  }
}

void require_format(const Json& json, const Path& path) {
  const auto format = member<int64_t>(json, "format", path);
  require<FormatError>(format == kFormat, "[{}] format must be {}; found {}; use the program that wrote it", path.string(),
                       kFormat, format);
}

struct FileRecord {
  uint64_t size = 0;
  std::string digest;
};

bool stays_inside(const Path& path) {
  return !path.empty() && path.is_relative() && std::ranges::none_of(path, [](const Path& part) { return part == ".."; });
}

std::map<std::string, FileRecord> read_manifest(const Path& checkpoint) {
  const Path path = checkpoint / kManifest;
  const Json json = read_json(path);
  require_format(json, path);
  std::map<std::string, FileRecord> files;
  for (const auto& [name, record] : member<Json::object_t>(json, "files", path)) {
    require<FormatError>(stays_inside(name), "[{}] files must lie in the checkpoint; found {:?}; use another checkpoint",
                         path.string(), name);
    files[name] = {member<uint64_t>(record, "size", path), member<std::string>(record, "digest", path)};
  }
  return files;
}

/// What is wrong with one file, or nothing.
std::optional<std::string> defect_of(const Path& file, const FileRecord& expected) {
  std::error_code error;
  const auto size = fs::file_size(file, error);
  if (error) return fmt::format("[{}] must exist; {}", file.string(), error.message());
  if (size != expected.size) {
    return fmt::format("[{}] must have {} bytes; found {}", file.string(), expected.size, size);
  }
  const std::string digest = file_digest(file);
  if (digest == expected.digest) return std::nullopt;
  return fmt::format("[{}] must have the digest {}; found {}", file.string(), expected.digest, digest);
}

/// Files without which a checkpoint says nothing.
std::optional<std::string> missing_entry(const Path& checkpoint, const std::map<std::string, FileRecord>& files) {
  if (!files.contains(kState)) {
    return fmt::format("[{}] must list {}", (checkpoint / kManifest).string(), kState);
  }
  if (!files.contains(kModel) && !files.contains(kAdapterWeights)) {
    return fmt::format("[{}] must list {} or {}", (checkpoint / kManifest).string(), kModel, kAdapterWeights);
  }
  return std::nullopt;
}

bool can_resume(const Path& checkpoint) {
  const auto files = read_manifest(checkpoint);
  return files.contains(kOptimizer) && files.contains(kGenerator);
}

// ---- Putting back ----

using Tensors = std::map<std::string, at::Tensor>;

/// state.json.
struct SavedState {
  RunPosition position;
  int64_t nonfinite_in_a_row = 0, skipped_steps = 0;
  GradScaler::State scaler;
};

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

void restore_values(const Path& checkpoint, nn::CausalLMImpl& model, const StepState& state, const Content& content) {
  const auto plain = state.adapters ? trained_outside_adapter(state) : all_parameters(model);
  const Tensors& saved = state.adapters ? content.outside : content.model;
  require_same(saved, plain, checkpoint);
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
  const Path target = folder / fmt::format("{}{}", kPrefix, state.step);
  remove_stale_temporaries(folder);

  AtomicDirectory directory(target);
  save_values(directory.path(), model, state);
  if (content.optimizer) save_resumable(directory.path(), model, state);
  if (!content.best.empty()) {
    fs::create_directory(directory.path() / kBest);
    copy_directory(content.best, directory.path() / kBest);
  }
  write_file_atomically(directory.path() / kState, state_json(state).dump(2) + "\n");
  write_file_atomically(directory.path() / kConfig, content.config_yaml);
  // No newline at its end, so that a manifest cut short anywhere is no JSON.
  write_file_atomically(directory.path() / kManifest, manifest_json(directory.path()).dump(2));
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
  state.optimizer->load_state(content.optimizer);
  restore_values(checkpoint, model, state, content);
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
