#include "config/adapter_keys.h"

#include <algorithm>
#include <map>

#include "config/schema.h"

namespace lora::config {
namespace {

using Methods = std::vector<std::string_view>;

const std::map<std::string_view, Methods>& table() {
  static const Methods kLora = {"lora"}, kAdaLora = {"adalora"}, kBoth = {"lora", "adalora"},
                       kWeights = {"lora", "adalora", "ia3"};
  static const Methods kVirtual = {"prefix", "prompt", "ptuning", "ptuning_v2"}, kPrefix = {"prefix", "ptuning_v2"};
  static const Methods kPrompt = {"prompt"}, kPTuning = {"ptuning"}, kBottleneck = {"bottleneck"};
  static const std::map<std::string_view, Methods> kTable = {{"r", kLora},
                                                             {"use_rslora", kLora},
                                                             {"use_dora", kLora},
                                                             {"init_lora_weights", kLora},
                                                             {"rank_pattern", kLora},
                                                             {"fused_rows", kLora},
                                                             {"alpha_pattern", kLora},
                                                             {"lora_alpha", kBoth},
                                                             {"lora_dropout", kBoth},
                                                             {"bias", kBoth},
                                                             {"layers_to_transform", kBoth},
                                                             {"layers_pattern", kBoth},
                                                             {"target_modules", {"lora", "adalora", "ia3", "trainable_tokens"}},
                                                             {"trainable_token_indices", {"lora", "adalora", "trainable_tokens"}},
                                                             {"tokens_from", kBoth},
                                                             {"exclude_modules", kWeights},
                                                             {"modules_to_save", kWeights},
                                                             {"init_r", kAdaLora},
                                                             {"target_r", kAdaLora},
                                                             {"tinit", kAdaLora},
                                                             {"tfinal", kAdaLora},
                                                             {"deltaT", kAdaLora},
                                                             {"beta1", kAdaLora},
                                                             {"beta2", kAdaLora},
                                                             {"orth_reg_weight", kAdaLora},
                                                             {"total_step", kAdaLora},
                                                             {"feedforward_modules", {"ia3"}},
                                                             {"num_virtual_tokens", kVirtual},
                                                             {"prefix_projection", kPrefix},
                                                             {"prefix_dropout", kPrefix},
                                                             {"encoder_hidden_size", {"prefix", "ptuning", "ptuning_v2"}},
                                                             {"encoder_reparameterization_type", kPTuning},
                                                             {"encoder_num_layers", kPTuning},
                                                             {"encoder_dropout", kPTuning},
                                                             {"prompt_tuning_init", kPrompt},
                                                             {"prompt_tuning_init_text", kPrompt},
                                                             {"preset", kBottleneck},
                                                             {"mh_adapter", kBottleneck},
                                                             {"output_adapter", kBottleneck},
                                                             {"original_ln_before", kBottleneck},
                                                             {"is_parallel", kBottleneck},
                                                             {"reduction_factor", kBottleneck},
                                                             {"non_linearity", kBottleneck},
                                                             {"scaling", kBottleneck},
                                                             {"learn_scaling", kBottleneck},
                                                             {"dropout", kBottleneck},
                                                             {"init_weights", {"prefix", "ptuning_v2", "bottleneck"}},
                                                             {"leave_out", kBottleneck}};
  return kTable;
}

/// A visitor that notes which keys have a value.
class GivenKeys {
 public:
  template <class T>
  void key(std::string_view name, const std::optional<T>& value, const Rule& = {}) {
    if (value) names.emplace_back(name);
  }
  template <class T>
  void key(std::string_view, const T&, const Rule& = {}) {}
  /// What is inside belongs to an init, which has its own rule.
  template <class Body>
  void section(std::string_view, const Body&) {}

  std::vector<std::string> names;
};

}  // namespace

const std::vector<std::string_view>& methods_of_key(std::string_view key) {
  static const Methods kAll = {};
  const auto found = table().find(key);
  return found == table().end() ? kAll : found->second;
}

std::vector<std::string> keys_of_other_methods(const AdapterSection& adapter) {
  if (adapter.method == "none") return {};
  GivenKeys given;
  AdapterSection copy = adapter;
  describe_adapter(given, copy);
  std::erase_if(given.names, [&](const std::string& name) {
    const Methods& methods = methods_of_key(name);
    return methods.empty() || std::find(methods.begin(), methods.end(), adapter.method) != methods.end();
  });
  return given.names;
}

}  // namespace lora::config
