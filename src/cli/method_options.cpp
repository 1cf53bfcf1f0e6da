#include "cli/method_options.h"

#include "core/check.h"
#include "lora/adapters/adapter_io.h"
#include "lora/data/dataset.h"
#include "lora/io/adapter_files.h"

namespace lora::cli {
namespace {

using config::RunConfig;

/// Of every method on weights.
template <class Options>
void apply_targets(Options& options, const config::AdapterSection& section) {
  apply(options.targets, section.target_modules);
  apply(options.exclude, section.exclude_modules);
  apply(options.modules_to_save, section.modules_to_save);
}

/// Of LoRA and AdaLoRA.
template <class Options>
void apply_low_rank(Options& options, const config::AdapterSection& section) {
  apply_targets(options, section);
  if (section.trainable_token_indices) options.token_indices = section.trainable_token_indices;
  apply(options.alpha, section.lora_alpha);
  apply(options.dropout, section.lora_dropout);
  apply(options.bias, section.bias);
  apply(options.layers_pattern, section.layers_pattern);
  if (section.layers_to_transform) options.layers_to_transform = section.layers_to_transform;
}

/// The run file has whole numbers.
std::vector<std::pair<std::string, double>> alphas_of(const config::Patterns& patterns) {
  return {patterns.begin(), patterns.end()};
}

LoraOptions lora_options(const config::AdapterSection& section) {
  LoraOptions options;
  apply_low_rank(options, section);
  apply(options.rank, section.r);
  apply(options.rank_stabilized, section.use_rslora);
  apply(options.dora, section.use_dora);
  apply(options.init, section.init_lora_weights);
  apply(options.rank_pattern, section.rank_pattern);
  if (section.alpha_pattern) options.alpha_pattern = alphas_of(*section.alpha_pattern);
  return options;
}

AdaLoraOptions adalora_options(const config::AdapterSection& section, int64_t total_steps) {
  AdaLoraOptions options;
  apply_low_rank(options, section);
  apply(options.init_rank, section.init_r);
  apply(options.target_rank, section.target_r);
  apply(options.initial_steps, section.tinit);
  apply(options.final_steps, section.tfinal);
  apply(options.interval, section.deltaT);
  apply(options.beta1, section.beta1);
  apply(options.beta2, section.beta2);
  apply(options.orth_reg_weight, section.orth_reg_weight);
  options.total_steps = section.total_step.value_or(total_steps);
  return options;
}

/// Without feedforward_modules those of the default that are targets.
Ia3Options ia3_options(const config::AdapterSection& section) {
  Ia3Options options;
  apply_targets(options, section);
  apply(options.feedforward, section.feedforward_modules);
  return options;
}

PrefixOptions prefix_options(const config::AdapterSection& section, int64_t hidden) {
  PrefixOptions options;
  if (section.method == "ptuning_v2") {
    options.dropout = kPTuningV2Dropout;
    options.encoder_hidden_size = hidden;
    options.num_virtual_tokens = 128;
  }
  apply(options.num_virtual_tokens, section.num_virtual_tokens);
  apply(options.projection, section.prefix_projection);
  apply(options.dropout, section.prefix_dropout);
  apply(options.encoder_hidden_size, section.encoder_hidden_size);
  options.init_zero = section.init_weights == "zero";
  return options;
}

PromptOptions prompt_options(const RunConfig& config, const config::AdapterSection& section, const data::Tokenizer* tokenizer) {
  PromptOptions options;
  apply(options.num_virtual_tokens, section.num_virtual_tokens);
  apply(options.init, section.prompt_tuning_init);
  apply(options.init_text, section.prompt_tuning_init_text);
  if (options.init != "TEXT") return options;
  require<ConfigError>(
      tokenizer != nullptr && !options.init_text.empty(),
      "[adapter.prompt_tuning_init] TEXT needs adapter.prompt_tuning_init_text and a tokenizer; found {}; give it",
      tokenizer == nullptr ? "no tokenizer" : "no text");
  options.init_ids = data::encode_prompt(*tokenizer, options.init_text);
  options.tokenizer = config.model.path.value_or(config.tokenizer.path.value_or("")).string();
  return options;
}

PTuningOptions ptuning_options(const config::AdapterSection& section) {
  PTuningOptions options;
  apply(options.num_virtual_tokens, section.num_virtual_tokens);
  apply(options.encoder, section.encoder_reparameterization_type);
  apply(options.encoder_hidden_size, section.encoder_hidden_size);
  apply(options.encoder_num_layers, section.encoder_num_layers);
  apply(options.encoder_dropout, section.encoder_dropout);
  return options;
}

BottleneckOptions bottleneck_options(const config::AdapterSection& section) {
  BottleneckOptions options = bottleneck_preset(section.preset.value_or("pfeiffer"));
  apply(options.mh_adapter, section.mh_adapter);
  apply(options.output_adapter, section.output_adapter);
  apply(options.original_ln_before, section.original_ln_before);
  apply(options.is_parallel, section.is_parallel);
  apply(options.reduction_factor, section.reduction_factor);
  apply(options.non_linearity, section.non_linearity);
  apply(options.scaling, section.scaling);
  apply(options.learn_scaling, section.learn_scaling);
  apply(options.dropout, section.dropout);
  apply(options.init, section.init_weights);
  apply(options.leave_out, section.leave_out);
  return options;
}

TrainableTokensOptions token_options(const config::AdapterSection& section) {
  TrainableTokensOptions options;
  options.token_indices = std::get<std::vector<int64_t>>(section.trainable_token_indices.value());
  if (section.target_modules) options.targets = section.target_modules;
  return options;
}

/// Width of the states; 0: a model that takes no virtual tokens, for which alone it is asked.
int64_t hidden_size(const nn::CausalLMImpl& model) {
  const auto shape = model.prompt_shape();
  return shape ? shape->hidden : 0;
}

}  // namespace

MethodOptions method_options(const RunConfig& config, const config::AdapterSection& given, const nn::CausalLMImpl& model,
                             const data::Tokenizer* tokenizer, int64_t total_steps) {
  const std::string& method = given.method;
  config::AdapterSection section = given;
  const bool is_low_rank = method == "lora" || method == "adalora";
  if (is_low_rank && !section.target_modules && !model.default_targets().empty())
    section.target_modules = model.default_targets();
  if (method == "adalora") return adalora_options(section, total_steps);
  if (method == "ia3") return ia3_options(section);
  if (method == "trainable_tokens") return token_options(section);
  if (method == "prefix" || method == "ptuning_v2") return prefix_options(section, hidden_size(model));
  if (method == "prompt") return prompt_options(config, section, tokenizer);
  if (method == "ptuning") return ptuning_options(section);
  if (method == "bottleneck") return bottleneck_options(section);
  return lora_options(section);
}

int64_t num_virtual_positions(const config::AdapterSection& section, const nn::CausalLMImpl& model) {
  const std::string& method = section.method;
  const bool is_prefix = method == "prefix" || method == "ptuning_v2";
  if (!is_prefix && method != "prompt" && method != "ptuning") return 0;
  if (is_prefix && !model.prefix_takes_positions()) return 0;
  if (section.num_virtual_tokens) return *section.num_virtual_tokens;
  if (section.init_from) {
    const MethodOptions saved = options_from(io::read_adapter_config(*section.init_from));
    if (const auto* prefix = std::get_if<PrefixOptions>(&saved)) return prefix->num_virtual_tokens;
    if (const auto* prompt = std::get_if<PromptOptions>(&saved)) return prompt->num_virtual_tokens;
  }
  return is_prefix ? prefix_options(section, hidden_size(model)).num_virtual_tokens : PromptOptions().num_virtual_tokens;
}

}  // namespace lora::cli
