#include "lora/adapters/method_config.h"

#include <set>
#include <tuple>
#include <utility>

#include "core/check.h"

namespace lora {
namespace {

/// What options and a file name differently and mean alike: pairs of members, each written once for both ways.
template <class Options, class Config, class... Members>
void take(Options& options, const Config& config, const std::tuple<Members...>& pairs) {
  std::apply([&](const auto&... pair) { ((options.*pair.first = config.*pair.second), ...); }, pairs);
}
template <class Options, class Config, class... Members>
void give(Config& config, const Options& options, const std::tuple<Members...>& pairs) {
  std::apply([&](const auto&... pair) { ((config.*pair.second = options.*pair.first), ...); }, pairs);
}

std::optional<formats::PeftLoraConfig::Names> unless_empty(const formats::PeftLoraConfig::Names& names) {
  if (std::visit([](const auto& value) { return value.empty(); }, names)) return std::nullopt;
  return names;
}

/// The init as far as it matters for values that come from a file. PEFT takes pissa's and olora's start from the base again when
/// it loads an adapter that was not converted. Other starts that change the base it cannot find again, nor can this.
std::string known_init(const std::string& init) {
  const std::set<std::string> known = {"true", "false", "gaussian", "orthogonal", "pissa", "olora"};
  if (known.contains(init)) return init;
  if (init == "OLoRA" || init == "OLORA") return "olora";
  require<FormatError>(
      !init.starts_with("corda") && !init.starts_with("lora_ga"),
      "[adapter_config.json] an adapter must be one of the original base model; found init_lora_weights {}, which changes "
      "the base by data that the file has not; save it with PEFT's path_initial_model_for_weight_conversion",
      init);
  return init.starts_with("pissa_niter_") ? "pissa" : "true";
}

/// Keys that LoRA and AdaLoRA share.
template <class Options>
constexpr auto shared_members() {
  using Config = formats::PeftLoraConfig;
  return std::tuple{std::pair{&Options::alpha, &Config::lora_alpha},
                    std::pair{&Options::dropout, &Config::lora_dropout},
                    std::pair{&Options::bias, &Config::bias},
                    std::pair{&Options::layers_to_transform, &Config::layers_to_transform},
                    std::pair{&Options::layers_pattern, &Config::layers_pattern},
                    std::pair{&Options::modules_to_save, &Config::modules_to_save},
                    std::pair{&Options::token_indices, &Config::trainable_token_indices}};
}

/// The same into options of either.
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
  take(options, config, shared_members<Options>());
  if (config.target_modules) options.targets = *config.target_modules;
  if (config.exclude_modules) options.exclude = *config.exclude_modules;
  options.base_model_name = config.base_model_name_or_path.value_or("");
}

template <class Options>
formats::PeftLoraConfig shared_config(const Options& options) {
  formats::PeftLoraConfig config;
  if (!options.base_model_name.empty()) config.base_model_name_or_path = options.base_model_name;
  config.task_type = "CAUSAL_LM";
  config.inference_mode = true;
  config.target_modules = options.targets;
  config.exclude_modules = unless_empty(options.exclude);
  give(config, options, shared_members<Options>());
  return config;
}

constexpr auto kAdaLora = [] {
  using Options = AdaLoraOptions;
  using Config = formats::PeftAdaLoraConfig;
  return std::tuple{std::pair{&Options::init_rank, &Config::init_r},
                    std::pair{&Options::target_rank, &Config::target_r},
                    std::pair{&Options::initial_steps, &Config::tinit},
                    std::pair{&Options::final_steps, &Config::tfinal},
                    std::pair{&Options::interval, &Config::deltaT},
                    std::pair{&Options::beta1, &Config::beta1},
                    std::pair{&Options::beta2, &Config::beta2},
                    std::pair{&Options::orth_reg_weight, &Config::orth_reg_weight},
                    std::pair{&Options::total_steps, &Config::total_step},
                    std::pair{&Options::rank_pattern, &Config::rank_pattern}};
}();

AdaLoraOptions options_of(const formats::PeftAdaLoraConfig& config) {
  AdaLoraOptions options;
  take_shared(options, config.lora);
  take(options, config, kAdaLora);
  return options;
}

formats::PeftAdaLoraConfig config_of(const AdaLoraOptions& options) {
  formats::PeftAdaLoraConfig config{.lora = shared_config(options)};
  give(config, options, kAdaLora);
  return config;
}

Ia3Options options_of(const formats::PeftIa3Config& config) {
  require<FormatError>(!config.fan_in_fan_out,
                       "[adapter_config.json] fan_in_fan_out must be false; found true, which is for "
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

constexpr auto kPTuning = [] {
  using Options = PTuningOptions;
  using Config = formats::PeftPTuningConfig;
  return std::tuple{std::pair{&Options::encoder, &Config::encoder_reparameterization_type},
                    std::pair{&Options::encoder_hidden_size, &Config::encoder_hidden_size},
                    std::pair{&Options::encoder_num_layers, &Config::encoder_num_layers},
                    std::pair{&Options::encoder_dropout, &Config::encoder_dropout}};
}();

PTuningOptions options_of(const formats::PeftPTuningConfig& config) {
  auto options = prompt_options_of<PTuningOptions>(config.prompt);
  take(options, config, kPTuning);
  return options;
}

formats::PeftPTuningConfig config_of(const PTuningOptions& options) {
  formats::PeftPTuningConfig config{.prompt = prompt_config_of(options)};
  give(config, options, kPTuning);
  return config;
}

constexpr auto kBottleneck = [] {
  using Options = BottleneckOptions;
  using Config = formats::AdapterHubConfig;
  return std::tuple{std::pair{&Options::mh_adapter, &Config::mh_adapter},
                    std::pair{&Options::output_adapter, &Config::output_adapter},
                    std::pair{&Options::reduction_factor, &Config::reduction_factor},
                    std::pair{&Options::non_linearity, &Config::non_linearity},
                    std::pair{&Options::original_ln_before, &Config::original_ln_before},
                    std::pair{&Options::is_parallel, &Config::is_parallel},
                    std::pair{&Options::dropout, &Config::dropout},
                    std::pair{&Options::leave_out, &Config::leave_out}};
}();

BottleneckOptions options_of(const formats::AdapterHubConfig& config) {
  BottleneckOptions options;
  take(options, config, kBottleneck);
  options.scaling = config.scaling.value_or(1);
  options.learn_scaling = !config.scaling;
  options.init = config.init_weights == "zero" ? "zero" : "bert";  // how it began is over
  return options;
}

formats::AdapterHubConfig config_of(const BottleneckOptions& options) {
  formats::AdapterHubConfig config;
  give(config, options, kBottleneck);
  config.scaling = options.learn_scaling ? std::nullopt : std::optional(options.scaling);
  config.init_weights = options.init;
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
  require<ConfigError>(lora != nullptr,
                       "[adapters] this needs a LoRA adapter; found {}; merge the adapter into its model instead",
                       method_name(options));
  return *lora;
}

formats::AdapterConfig config_from(const MethodOptions& options) {
  return std::visit([](const auto& method) -> formats::AdapterConfig { return config_of(method); }, options);
}

}  // namespace lora
