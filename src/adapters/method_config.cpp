#include "lora/adapters/method_config.h"

#include <set>

#include "core/check.h"

namespace lora {
namespace {

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

/// Keys that LoRA and AdaLoRA share, into options of either.
template <class Options>
void take_shared(Options& options, const formats::PeftLoraConfig& config) {
  require<FormatError>(!config.lora_bias,
                       "[adapter_config.json] lora_bias must be false; found true, which gives "
                       "lora_B a bias; merge the "
                       "adapter with PEFT, or train it without");
  require<FormatError>(!config.fan_in_fan_out,
                       "[adapter_config.json] fan_in_fan_out must be false; found true, which is "
                       "for transposed weights "
                       "(Conv1D); use a model with ordinary linear layers");
  options.alpha = config.lora_alpha;
  options.dropout = config.lora_dropout;
  options.bias = config.bias;
  if (config.target_modules) options.targets = *config.target_modules;
  if (config.exclude_modules) options.exclude = *config.exclude_modules;
  options.layers_to_transform = config.layers_to_transform;
  options.layers_pattern = config.layers_pattern;
  options.modules_to_save = config.modules_to_save;
  options.token_indices = config.trainable_token_indices;
  options.base_model_name = config.base_model_name_or_path.value_or("");
}

template <class Options>
formats::PeftLoraConfig shared_config(const Options& options) {
  formats::PeftLoraConfig config;
  if (!options.base_model_name.empty()) config.base_model_name_or_path = options.base_model_name;
  config.task_type = "CAUSAL_LM";
  config.inference_mode = true;
  config.lora_alpha = options.alpha;
  config.lora_dropout = options.dropout;
  config.bias = options.bias;
  config.target_modules = options.targets;
  config.exclude_modules = unless_empty(options.exclude);
  config.layers_to_transform = options.layers_to_transform;
  config.layers_pattern = options.layers_pattern;
  config.modules_to_save = options.modules_to_save;
  config.trainable_token_indices = options.token_indices;
  return config;
}

AdaLoraOptions options_of(const formats::PeftAdaLoraConfig& config) {
  AdaLoraOptions options;
  take_shared(options, config.lora);
  options.init_rank = config.init_r;
  options.target_rank = config.target_r;
  options.initial_steps = config.tinit;
  options.final_steps = config.tfinal;
  options.interval = config.deltaT;
  options.beta1 = config.beta1;
  options.beta2 = config.beta2;
  options.orth_reg_weight = config.orth_reg_weight;
  options.total_steps = config.total_step;
  options.rank_pattern = config.rank_pattern;
  return options;
}

formats::PeftAdaLoraConfig config_of(const AdaLoraOptions& options) {
  formats::PeftAdaLoraConfig config{.lora = shared_config(options)};
  config.init_r = options.init_rank;
  config.target_r = options.target_rank;
  config.tinit = options.initial_steps;
  config.tfinal = options.final_steps;
  config.deltaT = options.interval;
  config.beta1 = options.beta1;
  config.beta2 = options.beta2;
  config.orth_reg_weight = options.orth_reg_weight;
  config.total_step = options.total_steps;
  config.rank_pattern = options.rank_pattern;
  return config;
}

Ia3Options options_of(const formats::PeftIa3Config& config) {
  require<FormatError>(!config.fan_in_fan_out, "[adapter_config.json] fan_in_fan_out must be false; found true, which is for "
                       "transposed weights (Conv1D); use a model with ordinary linear layers");
  Ia3Options options;
  if (config.target_modules) options.targets = *config.target_modules;
  if (config.exclude_modules) options.exclude = *config.exclude_modules;
  if (config.target_modules) options.feedforward = std::vector<std::string>{};
  if (config.feedforward_modules) options.feedforward = *config.feedforward_modules;
  options.modules_to_save = config.modules_to_save;
  options.init_ones = config.init_ia3_weights;
  options.base_model_name = config.base_model_name_or_path.value_or("");
  return options;
}

formats::PeftIa3Config config_of(const Ia3Options& options) {
  formats::PeftIa3Config config;
  if (!options.base_model_name.empty()) config.base_model_name_or_path = options.base_model_name;
  config.task_type = "CAUSAL_LM";
  config.target_modules = options.targets;
  config.exclude_modules = unless_empty(options.exclude);
  config.feedforward_modules = options.feedforward;
  config.modules_to_save = options.modules_to_save;
  config.init_ia3_weights = options.init_ones;
  return config;
}

template <class Options>
Options prompt_options_of(const formats::PeftPromptLearning& config) {
  Options options;
  options.num_virtual_tokens = config.num_virtual_tokens;
  options.base_model_name = config.base_model_name_or_path.value_or("");
  return options;
}

/// What the model is, is filled in where an adapter is saved.
template <class Options>
formats::PeftPromptLearning prompt_config_of(const Options& options) {
  formats::PeftPromptLearning config;
  if (!options.base_model_name.empty()) config.base_model_name_or_path = options.base_model_name;
  config.task_type = "CAUSAL_LM";
  config.num_virtual_tokens = options.num_virtual_tokens;
  return config;
}

PrefixOptions options_of(const formats::PeftPrefixConfig& config) {
  auto options = prompt_options_of<PrefixOptions>(config.prompt);
  options.projection = config.prefix_projection;
  options.encoder_hidden_size = config.encoder_hidden_size;
  options.init_zero = config.init_weights.has_value();
  return options;
}

formats::PeftPrefixConfig config_of(const PrefixOptions& options) {
  formats::PeftPrefixConfig config{.prompt = prompt_config_of(options)};
  config.prefix_projection = options.projection;
  config.encoder_hidden_size = options.encoder_hidden_size;
  if (options.init_zero) config.init_weights = "zero";
  return config;
}

PromptOptions options_of(const formats::PeftPromptConfig& config) {
  auto options = prompt_options_of<PromptOptions>(config.prompt);
  options.init = config.prompt_tuning_init;
  options.init_text = config.prompt_tuning_init_text.value_or("");
  options.tokenizer = config.tokenizer_name_or_path.value_or("");
  return options;
}

formats::PeftPromptConfig config_of(const PromptOptions& options) {
  formats::PeftPromptConfig config{.prompt = prompt_config_of(options)};
  config.prompt_tuning_init = options.init;
  if (!options.init_text.empty()) config.prompt_tuning_init_text = options.init_text;
  if (!options.tokenizer.empty()) config.tokenizer_name_or_path = options.tokenizer;
  return config;
}

PTuningOptions options_of(const formats::PeftPTuningConfig& config) {
  auto options = prompt_options_of<PTuningOptions>(config.prompt);
  options.encoder = config.encoder_reparameterization_type;
  options.encoder_hidden_size = config.encoder_hidden_size;
  options.encoder_num_layers = config.encoder_num_layers;
  options.encoder_dropout = config.encoder_dropout;
  return options;
}

formats::PeftPTuningConfig config_of(const PTuningOptions& options) {
  formats::PeftPTuningConfig config{.prompt = prompt_config_of(options)};
  config.encoder_reparameterization_type = options.encoder;
  config.encoder_hidden_size = options.encoder_hidden_size;
  config.encoder_num_layers = options.encoder_num_layers;
  config.encoder_dropout = options.encoder_dropout;
  return config;
}

BottleneckOptions options_of(const formats::AdapterHubConfig& config) {
  BottleneckOptions options;
  options.mh_adapter = config.mh_adapter;
  options.output_adapter = config.output_adapter;
  options.reduction_factor = config.reduction_factor;
  options.non_linearity = config.non_linearity;
  options.original_ln_before = config.original_ln_before;
  options.is_parallel = config.is_parallel;
  options.scaling = config.scaling.value_or(1);
  options.learn_scaling = !config.scaling;
  options.dropout = config.dropout;
  options.init = config.init_weights == "zero" ? "zero" : "bert";  // how it began is over
  options.leave_out = config.leave_out;
  return options;
}

formats::AdapterHubConfig config_of(const BottleneckOptions& options) {
  formats::AdapterHubConfig config;
  config.mh_adapter = options.mh_adapter;
  config.output_adapter = options.output_adapter;
  config.reduction_factor = options.reduction_factor;
  config.non_linearity = options.non_linearity;
  config.original_ln_before = options.original_ln_before;
  config.is_parallel = options.is_parallel;
  if (options.learn_scaling) {
    config.scaling = std::nullopt;
  } else {
    config.scaling = options.scaling;
  }
  config.dropout = options.dropout;
  config.init_weights = options.init;
  config.leave_out = options.leave_out;
  return config;
}

TrainableTokensOptions options_of(const formats::PeftTrainableTokensConfig& config) {
  TrainableTokensOptions options;
  options.token_indices = config.token_indices;
  options.targets = config.target_modules;
  options.init_weights = config.init_weights;
  options.base_model_name = config.base_model_name_or_path.value_or("");
  return options;
}

formats::PeftTrainableTokensConfig config_of(const TrainableTokensOptions& options) {
  formats::PeftTrainableTokensConfig config;
  if (!options.base_model_name.empty()) config.base_model_name_or_path = options.base_model_name;
  config.task_type = "CAUSAL_LM";
  config.token_indices = options.token_indices;
  config.target_modules = options.targets;
  config.init_weights = options.init_weights;
  return config;
}

formats::PeftLoraConfig config_of(const LoraOptions& options) {
  formats::PeftLoraConfig config = shared_config(options);
  config.r = options.rank;
  config.use_rslora = options.rank_stabilized;
  config.use_dora = options.dora;
  // A file has the values; PEFT would begin anew with the data or the base.
  config.init_lora_weights = options.init == "eva" || options.init == "loftq" ? "true" : options.init;
  if (options.loftq) config.loftq = {options.loftq->bits, options.loftq->iterations};
  config.rank_pattern = options.rank_pattern;
  config.alpha_pattern = options.alpha_pattern;
  return config;
}

LoraOptions options_of(const formats::PeftLoraConfig& config) {
  LoraOptions options;
  take_shared(options, config);
  options.rank = config.r;
  options.rank_stabilized = config.use_rslora;
  options.dora = config.use_dora;
  options.init = known_init(config.init_lora_weights);
  if (config.loftq) options.loftq = {config.loftq->bits, config.loftq->iter};
  options.rank_pattern = config.rank_pattern;
  options.alpha_pattern = config.alpha_pattern;
  return options;
}

}  // namespace

MethodOptions options_from(const formats::AdapterConfig& config) {
  return std::visit([](const auto& method) -> MethodOptions { return options_of(method); }, config);
}

LoraOptions lora_options_from(const formats::AdapterConfig& config) {
  const MethodOptions options = options_from(config);
  const auto* lora = std::get_if<LoraOptions>(&options);
  require<ConfigError>(lora != nullptr, "[adapters] this needs a LoRA adapter; found {}; merge the adapter into its model instead",
                       method_name(options));
  return *lora;
}

formats::AdapterConfig config_from(const MethodOptions& options) {
  return std::visit([](const auto& method) -> formats::AdapterConfig { return config_of(method); }, options);
}

}  // namespace lora
