#include "formats/other_adapter_configs.h"

#include <array>

namespace lora::formats {
namespace {

OrderedJson origin_to_json(const char* type, const auto& config) {
  OrderedJson json = OrderedJson::object();
  json["auto_mapping"] = nullptr;
  json["base_model_name_or_path"] = or_null(config.base_model_name_or_path);
  json["inference_mode"] = config.inference_mode;
  json["modules_to_save"] = nullptr;
  json["peft_type"] = type;
  json["peft_version"] = kPeftVersion;
  json["revision"] = or_null(config.revision);
  json["task_type"] = or_null(config.task_type);
  return json;
}

PeftIa3Config read_ia3(ConfigReader& reader) {
  PeftIa3Config config;
  read_origin(reader, config);
  reader.read("fan_in_fan_out", config.fan_in_fan_out);
  reader.read("init_ia3_weights", config.init_ia3_weights);
  reader.read("target_modules", config.target_modules);
  reader.read("exclude_modules", config.exclude_modules);
  reader.read("feedforward_modules", config.feedforward_modules);
  reader.read("modules_to_save", config.modules_to_save);
  return config;
}

PeftTrainableTokensConfig read_trainable_tokens(ConfigReader& reader) {
  PeftTrainableTokensConfig config;
  read_origin(reader, config);
  reader.read("init_weights", config.init_weights);
  reader.read("target_modules", config.target_modules);
  if (const auto* value = reader.find("token_indices")) config.token_indices = reader.whole_numbers("token_indices", *value);
  return config;
}

void refuse_modules_to_save(ConfigReader& reader) {
  const auto* value = reader.find("modules_to_save");
  if (value != nullptr) reader.check(!is_truthy(*value), "modules_to_save", "be empty with virtual tokens", *value);
}

PeftPromptLearning read_prompt_learning(ConfigReader& reader) {
  PeftPromptLearning config;
  read_origin(reader, config);
  refuse_modules_to_save(reader);
  reader.read("num_virtual_tokens", config.num_virtual_tokens, 1);
  reader.read("num_transformer_submodules", config.num_transformer_submodules, 1);
  reader.check(config.num_transformer_submodules == 1, "num_transformer_submodules", "be 1, as decoder-only models have",
               config.num_transformer_submodules);
  reader.read("token_dim", config.token_dim, 1);
  reader.read("num_attention_heads", config.num_attention_heads, 1);
  reader.read("num_layers", config.num_layers, 1);
  return config;
}

OrderedJson or_null_if_zero(int64_t number) { return number == 0 ? OrderedJson() : OrderedJson(number); }

OrderedJson prompt_learning_to_json(const char* type, const PeftPromptLearning& config) {
  OrderedJson json = origin_to_json(type, config);
  json["num_attention_heads"] = or_null_if_zero(config.num_attention_heads);
  json["num_layers"] = or_null_if_zero(config.num_layers);
  json["num_transformer_submodules"] = config.num_transformer_submodules;
  json["num_virtual_tokens"] = config.num_virtual_tokens;
  json["token_dim"] = or_null_if_zero(config.token_dim);
  return json;
}

PeftPrefixConfig read_prefix(ConfigReader& reader) {
  PeftPrefixConfig config{.prompt = read_prompt_learning(reader)};
  reader.read("encoder_hidden_size", config.encoder_hidden_size, 1);
  reader.read("prefix_projection", config.prefix_projection);
  reader.read("init_weights", config.init_weights);
  if (config.init_weights) reader.check(*config.init_weights == "zero", "init_weights", "be null or zero", *config.init_weights);
  return config;
}

PeftPromptConfig read_prompt(ConfigReader& reader) {
  PeftPromptConfig config{.prompt = read_prompt_learning(reader)};
  reader.read("prompt_tuning_init", config.prompt_tuning_init, {"RANDOM", "SAMPLE_VOCAB", "TEXT"});
  reader.read("prompt_tuning_init_text", config.prompt_tuning_init_text);
  reader.read("tokenizer_name_or_path", config.tokenizer_name_or_path);
  reader.find("tokenizer_kwargs");
  return config;
}

PeftPTuningConfig read_ptuning(ConfigReader& reader) {
  PeftPTuningConfig config{.prompt = read_prompt_learning(reader)};
  reader.read("encoder_reparameterization_type", config.encoder_reparameterization_type, {"MLP", "LSTM"});
  reader.read("encoder_hidden_size", config.encoder_hidden_size, 1);
  reader.read("encoder_num_layers", config.encoder_num_layers, 1);
  reader.read_fraction("encoder_dropout", config.encoder_dropout);
  return config;
}

/// Options of AdapterHub that change what an adapter computes in ways that are not built here, and what they must be.
constexpr std::array kRefusedHubKeys = {"ln_before", "ln_after", "use_gating", "inv_adapter", "phm_layer", "stochastic_depth"};

void read_hub_scaling(ConfigReader& reader, AdapterHubConfig& config) {
  const auto* value = reader.find("scaling");
  if (value == nullptr) return;
  if (value->is_string()) {
    reader.check(*value == "learned", "scaling", "be a number or learned", *value);
    config.scaling = std::nullopt;
    return;
  }
  double scaling = 1;
  reader.read("scaling", scaling);
  config.scaling = scaling;
}

/// "seq_bn" and its like: AdapterHub writes the whole, but has short names for its presets.
void read_hub_method(const OrderedJson& json, AdapterHubConfig& config, std::string_view where) {
  ConfigReader reader(json, where);
  for (const std::string key : kRefusedHubKeys) {
    const auto* value = reader.find(key);
    if (value != nullptr) reader.check(!is_truthy(*value), key, "be off, because it is not built here", *value);
  }
  for (const std::string key : {"original_ln_after", "residual_before_ln"}) {
    const auto* value = reader.find(key);
    if (value != nullptr) reader.check(*value == true, key, "be true, because the other form is not built here", *value);
  }
  reader.read("mh_adapter", config.mh_adapter);
  reader.read("output_adapter", config.output_adapter);
  config.original_ln_before = false;
  reader.read("original_ln_before", config.original_ln_before);
  reader.read("is_parallel", config.is_parallel);
  reader.read("reduction_factor", config.reduction_factor);
  reader.check(config.reduction_factor > 0, "reduction_factor", "be a positive number", config.reduction_factor);
  reader.read("non_linearity", config.non_linearity);
  reader.read("init_weights", config.init_weights);
  reader.read_fraction("dropout", config.dropout);
  read_hub_scaling(reader, config);
  if (const auto* list = reader.find("leave_out")) {
    reader.check(list->is_array(), "leave_out", "be a list of layers", *list);
    for (const auto& item : *list) config.leave_out.push_back(reader.whole_number("leave_out", item, 0));
  }
}

}  // namespace

std::optional<AdapterConfig> read_other_config(const std::string& type, ConfigReader& reader) {
  if (type == "IA3") return read_ia3(reader);
  if (type == "TRAINABLE_TOKENS") return read_trainable_tokens(reader);
  if (type == "PREFIX_TUNING") return read_prefix(reader);
  if (type == "PROMPT_TUNING") return read_prompt(reader);
  if (type == "P_TUNING") return read_ptuning(reader);
  return std::nullopt;
}

bool is_adapter_hub_config(const OrderedJson& root) {
  return !root.contains("peft_type") && root.contains("config") && root.at("config").is_object() &&
         (root.at("config").contains("mh_adapter") || root.at("config").contains("reduction_factor"));
}

AdapterHubConfig read_adapter_hub_config(const OrderedJson& root, std::string_view where) {
  AdapterHubConfig config;
  ConfigReader reader(root, where);
  reader.read("name", config.name);
  reader.read("model_type", config.model_type);
  reader.read("model_name", config.model_name);
  reader.read("model_class", config.model_class);
  reader.read("hidden_size", config.hidden_size, 1);
  read_hub_method(root.at("config"), config, where);
  return config;
}

std::string write_other_config(const PeftIa3Config& config) {
  OrderedJson json = origin_to_json("IA3", config);
  json["exclude_modules"] = or_null(config.exclude_modules);
  json["fan_in_fan_out"] = config.fan_in_fan_out;
  json["feedforward_modules"] = or_null(config.feedforward_modules);
  json["init_ia3_weights"] = config.init_ia3_weights;
  json["modules_to_save"] = or_null(config.modules_to_save);
  json["target_modules"] = or_null(config.target_modules);
  return text_of(sorted(json));
}

std::string write_other_config(const PeftTrainableTokensConfig& config) {
  OrderedJson json = origin_to_json("TRAINABLE_TOKENS", config);
  json.erase("modules_to_save");
  json["init_weights"] = config.init_weights;
  json["target_modules"] = or_null(config.target_modules);
  json["token_indices"] = config.token_indices;
  return text_of(sorted(json));
}

std::string write_other_config(const PeftPrefixConfig& config) {
  OrderedJson json = prompt_learning_to_json("PREFIX_TUNING", config.prompt);
  json["encoder_hidden_size"] = or_null_if_zero(config.encoder_hidden_size);
  json["init_weights"] = or_null(config.init_weights);
  json["prefix_projection"] = config.prefix_projection;
  return text_of(sorted(json));
}

std::string write_other_config(const PeftPromptConfig& config) {
  OrderedJson json = prompt_learning_to_json("PROMPT_TUNING", config.prompt);
  json["prompt_tuning_init"] = config.prompt_tuning_init;
  json["prompt_tuning_init_text"] = or_null(config.prompt_tuning_init_text);
  json["tokenizer_kwargs"] = nullptr;
  json["tokenizer_name_or_path"] = or_null(config.tokenizer_name_or_path);
  return text_of(sorted(json));
}

std::string write_other_config(const PeftPTuningConfig& config) {
  OrderedJson json = prompt_learning_to_json("P_TUNING", config.prompt);
  json["encoder_dropout"] = config.encoder_dropout;
  json["encoder_hidden_size"] = or_null_if_zero(config.encoder_hidden_size);
  json["encoder_num_layers"] = config.encoder_num_layers;
  json["encoder_reparameterization_type"] = config.encoder_reparameterization_type;
  return text_of(sorted(json));
}

std::string write_other_config(const AdapterHubConfig& config) {
  OrderedJson method = {{"adapter_residual_before_ln", false},
                        {"cross_adapter", false},
                        {"dropout", config.dropout},
                        {"init_weights", config.init_weights},
                        {"inv_adapter", nullptr},
                        {"inv_adapter_reduction_factor", nullptr},
                        {"is_parallel", config.is_parallel},
                        {"leave_out", config.leave_out},
                        {"ln_after", false},
                        {"ln_before", false},
                        {"mh_adapter", config.mh_adapter},
                        {"non_linearity", config.non_linearity},
                        {"original_ln_after", true},
                        {"original_ln_before", config.original_ln_before},
                        {"output_adapter", config.output_adapter},
                        {"phm_layer", false},
                        {"reduction_factor", whole_if_possible(config.reduction_factor)},
                        {"residual_before_ln", true},
                        {"scaling", config.scaling ? OrderedJson(*config.scaling) : OrderedJson("learned")},
                        {"use_gating", false}};
  const OrderedJson json = {{"config", method},
                            {"hidden_size", or_null_if_zero(config.hidden_size)},
                            {"model_class", config.model_class},
                            {"model_name", config.model_name},
                            {"model_type", config.model_type},
                            {"name", config.name},
                            {"version", "adapters.1.0.0"}};
  return text_of(json);
}

}  // namespace lora::formats
