#include "cli/saved_adapter.h"

#include <algorithm>
#include <variant>

#include "core/check.h"
#include "core/overloaded.h"
#include "lora/adapters/adapter_io.h"
#include "lora/adapters/inject.h"
#include "lora/io/adapter_files.h"

namespace lora::cli {
namespace {

using config::AdapterSection;

/// Values of which two are alike whatever order a list has: PEFT writes its sets as they come.
template <class Value>
Value in_order(Value value) {
  return value;
}
template <class Item>
std::vector<Item> in_order(std::vector<Item> items) {
  std::ranges::sort(items);
  return items;
}
template <class First, class Second>
std::variant<First, Second> in_order(const std::variant<First, Second>& value) {
  return std::visit([](const auto& known) -> std::variant<First, Second> { return in_order(known); }, value);
}

template <class Value>
void require_same(const char* key, const std::optional<Value>& given, const Value& saved) {
  require<ConfigError>(!given || in_order(*given) == in_order(saved),
                       "[adapter.{}] a key given beside init_from must agree with the saved adapter; it differs; leave it out",
                       key);
}

/// Of a key that a saved adapter may lack.
template <class Value>
void require_same(const char* key, const std::optional<Value>& given, const std::optional<Value>& saved) {
  require_same(key, given, saved.value_or(Value{}));
}

/// The rows of a saved adapter that has none are no rows.
void require_same_tokens(const AdapterSection& section, const std::optional<TokenIndices>& saved) {
  require_same("trainable_token_indices", section.trainable_token_indices, saved.value_or(std::vector<int64_t>{}));
}

template <class Options>
void require_same_targets(const AdapterSection& section, const Options& saved) {
  require_same("target_modules", section.target_modules, saved.targets);
  require_same("exclude_modules", section.exclude_modules, saved.exclude);
  require_same("modules_to_save", section.modules_to_save, saved.modules_to_save);
}

/// Of LoRA and AdaLoRA.
template <class Options>
void require_same_low_rank(const AdapterSection& section, const Options& saved) {
  require_same_targets(section, saved);
  require_same_tokens(section, saved.token_indices);
  require_same("lora_alpha", section.lora_alpha, saved.alpha);
  require_same("bias", section.bias, saved.bias);
  require_same("layers_to_transform", section.layers_to_transform, saved.layers_to_transform);
  require_same("layers_pattern", section.layers_pattern, saved.layers_pattern);
}

void require_agrees(const AdapterSection& section, const LoraOptions& saved) {
  require_same_low_rank(section, saved);
  require_same("r", section.r, saved.rank);
  require_same("use_rslora", section.use_rslora, saved.rank_stabilized);
  require_same("use_dora", section.use_dora, saved.dora);
  require_same("init_lora_weights", section.init_lora_weights, saved.init);
  require_same("rank_pattern", section.rank_pattern, saved.rank_pattern);
  if (!section.alpha_pattern) return;
  const std::vector<std::pair<std::string, double>> alphas(section.alpha_pattern->begin(), section.alpha_pattern->end());
  require_same("alpha_pattern", std::optional(alphas), saved.alpha_pattern);
}

void require_agrees(const AdapterSection& section, const AdaLoraOptions& saved) {
  require_same_low_rank(section, saved);
  require_same("init_r", section.init_r, saved.init_rank);
  require_same("target_r", section.target_r, saved.target_rank);
  require_same("tinit", section.tinit, saved.initial_steps);
  require_same("tfinal", section.tfinal, saved.final_steps);
  require_same("deltaT", section.deltaT, saved.interval);
  require_same("total_step", section.total_step, saved.total_steps);
  require_same("beta1", section.beta1, saved.beta1);
  require_same("beta2", section.beta2, saved.beta2);
  require_same("orth_reg_weight", section.orth_reg_weight, saved.orth_reg_weight);
}

void require_agrees(const AdapterSection& section, const Ia3Options& saved) {
  require_same_targets(section, saved);
  require_same("feedforward_modules", section.feedforward_modules, saved.feedforward);
}

void require_agrees(const AdapterSection& section, const TrainableTokensOptions& saved) {
  require_same_tokens(section, saved.token_indices);
  require_same("target_modules", section.target_modules, saved.targets);
}

void require_no_network(bool has_network) {
  require<ConfigError>(!has_network,
                       "[adapter.init_from] a saved prompt can start one without a network; found one whose virtual tokens "
                       "a network made, whose weights the file has not; begin afresh, or resume the run from its checkpoint");
}

void require_agrees(const AdapterSection& section, const PrefixOptions& saved) {
  require_same("num_virtual_tokens", section.num_virtual_tokens, saved.num_virtual_tokens);
  require_no_network(saved.projection || section.prefix_projection.value_or(false));
}

void require_agrees(const AdapterSection& section, const PromptOptions& saved) {
  require_same("num_virtual_tokens", section.num_virtual_tokens, saved.num_virtual_tokens);
}

void require_agrees(const AdapterSection&, const PTuningOptions&) { require_no_network(true); }

void require_agrees(const AdapterSection& section, const BottleneckOptions& saved) {
  if (section.preset) {
    const BottleneckOptions preset = bottleneck_preset(*section.preset);
    require_same("preset", std::optional(section.mh_adapter.value_or(preset.mh_adapter)), saved.mh_adapter);
    require_same("preset", std::optional(section.output_adapter.value_or(preset.output_adapter)), saved.output_adapter);
    require_same("preset", std::optional(section.is_parallel.value_or(preset.is_parallel)), saved.is_parallel);
  }
  require_same("mh_adapter", section.mh_adapter, saved.mh_adapter);
  require_same("output_adapter", section.output_adapter, saved.output_adapter);
  require_same("original_ln_before", section.original_ln_before, saved.original_ln_before);
  require_same("is_parallel", section.is_parallel, saved.is_parallel);
  require_same("reduction_factor", section.reduction_factor, saved.reduction_factor);
  require_same("non_linearity", section.non_linearity, saved.non_linearity);
  require_same("scaling", section.scaling, saved.scaling);
  require_same("learn_scaling", section.learn_scaling, saved.learn_scaling);
  require_same("leave_out", section.leave_out, saved.leave_out);
}

/// The method of the run file that trains such an adapter.
bool is_method(const std::string& method, const MethodOptions& options) {
  const std::string saved = method_name(options);
  if (saved == "rslora" || saved == "dora") return method == "lora";
  return method == saved || (method == "ptuning_v2" && saved == "prefix");
}

/// P-tuning v2 has a dropout that PEFT's file of a prefix cannot hold.
MethodOptions with_own_dropout(MethodOptions options, const AdapterSection& section) {
  const auto take = [](double& dropout, const std::optional<double>& given) { dropout = given.value_or(dropout); };
  std::visit(Overloaded{[&](LoraOptions& lora) { take(lora.dropout, section.lora_dropout); },
                        [&](AdaLoraOptions& adalora) { take(adalora.dropout, section.lora_dropout); },
                        [&](PrefixOptions& prefix) {
                          if (section.method == "ptuning_v2") prefix.dropout = kPTuningV2Dropout;
                          take(prefix.dropout, section.prefix_dropout);
                        },
                        [&](BottleneckOptions& bottleneck) { take(bottleneck.dropout, section.dropout); }, [](auto&) {}},
             options);
  return options;
}

}  // namespace

AdapterSet load_saved_adapter(const AdapterSection& section, nn::CausalLMImpl& model, const std::string& name) {
  const MethodOptions saved = options_from(io::read_adapter_config(*section.init_from));
  require<ConfigError>(is_method(section.method, saved),
                       "[adapter.method] the method must be that of adapter.init_from, {}; found {}; leave it out",
                       method_name(saved), section.method);
  std::visit([&](const auto& options) { require_agrees(section, options); }, saved);
  const AdapterSet adapters = load_adapter(model, *section.init_from, name, with_own_dropout(saved, section));
  allocate_ranks(adapters);
  return adapters;
}

}  // namespace lora::cli
