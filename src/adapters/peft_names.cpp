#include "adapters/peft_names.h"

#include <algorithm>
#include <variant>
#include <vector>

#include "adapters/state.h"

namespace lora::adapters {
namespace {

/// LoRA's factors of a Linear are modules in PEFT and end in ".weight"; everything else is a bare parameter. Rows of tokens
/// beside another method are in a module of their own.
std::string factor_name(const AdapterSet& adapters, const AdapterSet::Slot& slot, const std::string& parameter) {
  const bool is_alone = std::holds_alternative<TrainableTokensOptions>(adapters.options());
  if (token_rows(*slot.adapter) != nullptr) return slot.path + (is_alone ? "." : ".token_adapter.") + parameter;
  const bool is_module = (parameter == "lora_A" || parameter == "lora_B") && dynamic_cast<const LoraLinear*>(slot.adapter.get());
  return slot.path + "." + parameter + (is_module ? ".weight" : "");
}

/// AdapterHub's name of a parameter: it keeps all adapters of a place in one module.
std::string hub_name(const AdapterSet::BlockSlot& block, const std::string& adapter, const std::string& parameter) {
  return block.path + ".adapters." + adapter + "." + parameter;
}

/// PEFT puts an adapted layer's own parameters one level deeper.
std::string bias_name(const AdapterSet& adapters, const std::string& name) {
  const auto& slots = adapters.slots();
  const bool adapted = std::ranges::any_of(slots, [&](const auto& slot) { return name == slot.path + ".bias"; });
  if (!adapted) return name;
  return name.substr(0, name.rfind('.')) + ".base_layer.bias";
}

at::Tensor trained_value(const AdapterSet& adapters, const AdapterSet::SavedParameter& saved) {
  return adapters.state().trained_values_in_model ? saved.parameter : saved.other;
}

/// A state dict that was written without PEFT's save function still has the adapter's name in it.
std::string without_adapter_name(const std::string& file_name, const std::string& adapter) {
  for (const char* factor : {".lora_A", ".lora_B", ".lora_E", ".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude_vector",
                             ".ia3_l", ".trainable_tokens_delta"}) {
    const std::string named = factor + ("." + adapter);
    const size_t at = file_name.find(named);
    const size_t end = at + named.size();
    if (at == std::string::npos || (end != file_name.size() && file_name[end] != '.')) continue;
    return file_name.substr(0, end - adapter.size() - 1) + file_name.substr(end);
  }
  return without(file_name, ".modules_to_save." + adapter);
}

/// AdapterHub's name with our adapter in the place of the one that it was saved as.
std::string with_own_name(const std::string& file_name, const std::string& adapter) {
  constexpr std::string_view kAdapters = ".adapters.";
  const size_t begin = file_name.find(kAdapters);
  if (begin == std::string::npos) return file_name;
  const size_t end = file_name.find('.', begin + kAdapters.size());
  return end == std::string::npos ? file_name : file_name.substr(0, begin + kAdapters.size()) + adapter + file_name.substr(end);
}

}  // namespace

Places places_of(const AdapterSet& adapters) {
  Places places;
  for (const auto& slot : adapters.slots()) {
    for (const auto& parameter : slot.adapter->named_parameters()) {
      places[factor_name(adapters, slot, parameter.key())] = parameter.value();
    }
  }
  for (const auto& block : adapters.blocks()) {
    for (const auto& parameter : block.adapter->named_parameters()) {
      places[hub_name(block, adapters.name(), parameter.key())] = parameter.value();
    }
  }
  for (const auto& saved : adapters.saved_parameters()) places[saved.name] = trained_value(adapters, saved);
  for (const auto& bias : adapters.biases()) places[bias_name(adapters, bias.name)] = trained_value(adapters, bias);
  return places;
}

std::string without(const std::string& text, const std::string& part) {
  const size_t at = text.find(part);
  return at == std::string::npos ? text : text.substr(0, at) + text.substr(at + part.size());
}

std::string place_name(const std::string& file_name, const std::string& adapter, const Places& places) {
  const std::string bare = file_name.starts_with(kFilePrefix) ? file_name.substr(kFilePrefix.size()) : file_name;
  std::vector<std::string> readings = {bare, without_adapter_name(bare, adapter), without_adapter_name(bare, "default"),
                                       with_own_name(bare, adapter)};
  if (bare.ends_with(".lora_magnitude_vector.weight")) readings.push_back(bare.substr(0, bare.rfind('.')));
  // Older files name the bias of an adapted layer as the base model does; ours may hold a layer
  // only another adapts.
  readings.push_back(without(bare, ".base_layer"));
  if (bare.ends_with(".bias")) readings.push_back(bare.substr(0, bare.rfind('.')) + ".base_layer.bias");
  const auto known = std::ranges::find_if(readings, [&](const auto& name) { return places.contains(name); });
  return known == readings.end() ? bare : *known;
}

}  // namespace lora::adapters
