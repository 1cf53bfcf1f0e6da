#include "lora/adapters/adapter_io.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <algorithm>
#include <set>

#include "adapters/inject_within.h"
#include "adapters/listing.h"
#include "adapters/state.h"
#include "core/check.h"
#include "lora/adapters/inject.h"
#include "lora/core/log.h"

namespace lora {
namespace {

constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::string_view kBaseLayerWeight = ".base_layer.weight";

/// Where the tensors of a file belong, by their file names without the prefix.
using Places = std::map<std::string, at::Tensor>;
using FileTensors = std::map<std::string, at::Tensor>;

/// A Linear's factors are modules in PEFT, an Embedding's are bare parameters: only the former end
/// in ".weight".
std::string factor_name(const AdapterSet::Slot& slot, const std::string& parameter) {
  return slot.path + "." + parameter + (slot.linear.is_empty() ? "" : ".weight");
}

/// PEFT puts an adapted layer's own parameters one level deeper.
std::string bias_name(const AdapterSet& adapters, const std::string& name) {
  const auto& slots = adapters.slots();
  const bool adapted =
      std::ranges::any_of(slots, [&](const auto& slot) { return name == slot.path + ".bias"; });
  if (!adapted) return name;
  return name.substr(0, name.rfind('.')) + ".base_layer.bias";
}

at::Tensor trained_value(const AdapterSet& adapters, const AdapterSet::SavedParameter& saved) {
  return adapters.state().trained_values_in_model ? saved.parameter : saved.other;
}

Places places_of(const AdapterSet& adapters) {
  Places places;
  for (const auto& slot : adapters.slots()) {
    for (const auto& parameter : slot.adapter->named_parameters()) {
      places[factor_name(slot, parameter.key())] = parameter.value();
    }
  }
  for (const auto& saved : adapters.saved_parameters())
    places[saved.name] = trained_value(adapters, saved);
  for (const auto& bias : adapters.biases())
    places[bias_name(adapters, bias.name)] = trained_value(adapters, bias);
  return places;
}

/// `text` without the first occurrence of `part`.
std::string without(const std::string& text, const std::string& part) {
  const size_t at = text.find(part);
  return at == std::string::npos ? text : text.substr(0, at) + text.substr(at + part.size());
}

/// A state dict that was written without PEFT's save function still has the adapter's name in it.
std::string without_adapter_name(const std::string& file_name, const std::string& adapter) {
  for (const char* factor : {".lora_A", ".lora_B", ".lora_embedding_A", ".lora_embedding_B"}) {
    const std::string named = factor + ("." + adapter);
    const size_t at = file_name.find(named);
    const size_t end = at + named.size();
    if (at == std::string::npos || (end != file_name.size() && file_name[end] != '.')) continue;
    return file_name.substr(0, end - adapter.size() - 1) + file_name.substr(end);
  }
  return without(file_name, ".modules_to_save." + adapter);
}

/// The place that a file's tensor name means; the name as it is when it means none.
std::string place_name(const std::string& file_name, const std::string& adapter,
                       const Places& places) {
  const std::string bare =
      file_name.starts_with(kPrefix) ? file_name.substr(kPrefix.size()) : file_name;
  std::vector<std::string> readings = {bare, without_adapter_name(bare, adapter),
                                       without_adapter_name(bare, "default")};
  // Older files name the bias of an adapted layer as the base model does; ours may hold a layer
  // only another adapts.
  readings.push_back(without(bare, ".base_layer"));
  if (bare.ends_with(".bias"))
    readings.push_back(bare.substr(0, bare.rfind('.')) + ".base_layer.bias");
  const auto known =
      std::ranges::find_if(readings, [&](const auto& name) { return places.contains(name); });
  return known == readings.end() ? bare : *known;
}

/// The adapted layer whose frozen weight a file repeats under `name`; null for anything else.
const AdapterSet::Slot* base_copy_of(const AdapterSet& adapters, const std::string& name) {
  if (!name.ends_with(kBaseLayerWeight)) return nullptr;
  const auto path = std::string_view(name).substr(0, name.size() - kBaseLayerWeight.size());
  const auto& slots = adapters.slots();
  const auto found =
      std::ranges::find_if(slots, [&](const auto& slot) { return slot.path == path; });
  return found == slots.end() ? nullptr : &*found;
}

std::string shape_text(const at::Tensor& tensor) {
  return fmt::format("{} [{}]", c10::toString(tensor.scalar_type()),
                     fmt::join(tensor.sizes(), ", "));
}

bool fits(const at::Tensor& value, const at::Tensor& place) {
  return value.sizes() == place.sizes() && value.is_floating_point();
}

/// What stands between a file and an adapter; each list becomes one part of the message.
class Mismatches {
 public:
  void missing(const std::string& name) { missing_.push_back(adapters::quote_name(name)); }
  void extra(const std::string& name) { extra_.push_back(adapters::quote_name(name)); }
  void misshapen(const std::string& name, const at::Tensor& value, const at::Tensor& place) {
    misshapen_.push_back(fmt::format("{} ({} in the file, float [{}] in the model)",
                                     adapters::quote_name(name), shape_text(value),
                                     fmt::join(place.sizes(), ", ")));
  }

  void require_none() const {
    std::vector<std::string> parts;
    const auto add = [&](const char* what, const std::vector<std::string>& names) {
      if (!names.empty())
        parts.push_back(fmt::format("{} {}: {}", names.size(), what, adapters::listed(names)));
    };
    add("missing", missing_);
    add("without a place", extra_);
    add("of another shape", misshapen_);
    require<ShapeError>(
        parts.empty(),
        "[adapters.load] the file's tensors must be exactly the adapter's; found {}; check r, "
        "rank_pattern and target_modules of adapter_config.json, and that it belongs to this base "
        "model",
        fmt::join(parts, "; "));
  }

 private:
  std::vector<std::string> missing_, extra_, misshapen_;
};

/// Room for an adapter whose config and tensors disagree in an honest way, so that the message can
/// name them.
double max_elements_for(const FileTensors& tensors) {
  double sum = 1e6;
  for (const auto& entry : tensors) sum += 4 * static_cast<double>(entry.second.numel());
  return sum;
}

/// PEFT repeats the frozen table of an adapted embedding. It is not loaded: the base model's own is
/// in place.
void check_base_copy(const AdapterSet::Slot& slot, const std::string& file_name,
                     const at::Tensor& value, Mismatches& mismatches) {
  const auto weight = adapters::weight_value_of(slot);
  if (!fits(value, weight)) {
    mismatches.misshapen(file_name, value, weight);
  } else if (!value.to(weight.options()).equal(weight)) {
    log::warn(
        fmt::format("[adapters.load] {} differs from the base model's weight, which stays; the "
                    "adapter may have "
                    "been trained on another base",
                    file_name));
  }
}

at::Tensor to_file(const at::Tensor& tensor) {
  return tensor.detach().to(at::kCPU, at::kFloat).contiguous();
}

std::optional<formats::PeftLoraConfig::Names> unless_empty(
    const formats::PeftLoraConfig::Names& names) {
  if (std::visit([](const auto& value) { return value.empty(); }, names)) return std::nullopt;
  return names;
}

/// Initialisations that only other tools know do not matter here: the values come from the file.
std::string known_init(const std::string& init) {
  const std::set<std::string> known = {"true", "false", "gaussian", "orthogonal"};
  return known.contains(init) ? init : "true";
}

}  // namespace

LoraOptions lora_options_from(const formats::PeftLoraConfig& config) {
  require<FormatError>(!config.lora_bias,
                       "[adapter_config.json] lora_bias must be false; found true, which gives "
                       "lora_B a bias; merge the "
                       "adapter with PEFT, or train it without");
  require<FormatError>(!config.fan_in_fan_out,
                       "[adapter_config.json] fan_in_fan_out must be false; found true, which is "
                       "for transposed weights "
                       "(Conv1D); use a model with ordinary linear layers");
  LoraOptions options;
  options.rank = config.r;
  options.alpha = config.lora_alpha;
  options.dropout = config.lora_dropout;
  options.rank_stabilized = config.use_rslora;
  options.init = known_init(config.init_lora_weights);
  options.bias = config.bias;
  if (config.target_modules) options.targets = *config.target_modules;
  if (config.exclude_modules) options.exclude = *config.exclude_modules;
  options.layers_to_transform = config.layers_to_transform;
  options.layers_pattern = config.layers_pattern;
  options.rank_pattern = config.rank_pattern;
  options.alpha_pattern = config.alpha_pattern;
  options.modules_to_save = config.modules_to_save;
  options.base_model_name = config.base_model_name_or_path.value_or("");
  return options;
}

formats::PeftLoraConfig peft_config_from(const LoraOptions& options) {
  formats::PeftLoraConfig config;
  if (!options.base_model_name.empty()) config.base_model_name_or_path = options.base_model_name;
  config.task_type = "CAUSAL_LM";
  config.inference_mode = true;
  config.r = options.rank;
  config.lora_alpha = options.alpha;
  config.lora_dropout = options.dropout;
  config.use_rslora = options.rank_stabilized;
  config.init_lora_weights = options.init;
  config.bias = options.bias;
  config.target_modules = options.targets;
  config.exclude_modules = unless_empty(options.exclude);
  config.layers_to_transform = options.layers_to_transform;
  config.layers_pattern = options.layers_pattern;
  config.rank_pattern = options.rank_pattern;
  config.alpha_pattern = options.alpha_pattern;
  config.modules_to_save = options.modules_to_save;
  return config;
}

io::AdapterFiles adapter_to_files(const AdapterSet& adapters) {
  io::AdapterFiles files{.config = peft_config_from(adapters.options()), .tensors = {}};
  for (const auto& [name, tensor] : places_of(adapters))
    files.tensors[std::string(kPrefix) + name] = to_file(tensor);
  return files;
}

void load_adapter_tensors(const AdapterSet& adapters, const FileTensors& tensors) {
  const auto places = places_of(adapters);
  std::map<std::string, at::Tensor> values;  // by place
  Mismatches mismatches;
  for (const auto& [file_name, value] : tensors) {
    const std::string name = place_name(file_name, adapters.name(), places);
    const auto place = places.find(name);
    if (place != places.end()) {
      if (!fits(value, place->second)) mismatches.misshapen(file_name, value, place->second);
      if (!values.emplace(name, value).second) mismatches.extra(file_name);
    } else if (const auto* slot = base_copy_of(adapters, name)) {
      check_base_copy(*slot, file_name, value, mismatches);
    } else {
      mismatches.extra(file_name);
    }
  }
  for (const auto& [name, place] : places) {
    if (!values.contains(name)) mismatches.missing(name);
  }
  mismatches.require_none();

  const torch::NoGradGuard no_grad;
  for (const auto& [name, value] : values) at::Tensor(places.at(name)).copy_(value);
}

AdapterSet adapter_from_files(torch::nn::Module& model, const io::AdapterFiles& files,
                              const std::string& name) {
  const auto active_before = active_adapters(model);
  const auto adapters = adapters::inject_within(model, lora_options_from(files.config), name,
                                                max_elements_for(files.tensors));
  try {
    load_adapter_tensors(adapters, files.tensors);
  } catch (...) {
    remove_adapter(model, name);
    set_active_adapters(model, active_before);
    throw;
  }
  return adapters;
}

void save_adapter(const AdapterSet& adapters, const Path& directory) {
  io::write_adapter_files(directory, adapter_to_files(adapters));
}

AdapterSet load_adapter(torch::nn::Module& model, const Path& directory, const std::string& name) {
  return adapter_from_files(model, io::read_adapter_files(directory), name);
}

}  // namespace lora
