#include "lora/formats/adapter_config.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <optional>
#include <string>

#include "core/check.h"
#include "core/overloaded.h"
#include "formats/config_reader.h"
#include "formats/json.h"
#include "formats/other_adapter_configs.h"

namespace lora::formats {
namespace {

/// Keys that change what an adapter computes in ways that are not built here.
constexpr std::array kRefusedKeys = {
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config",
    "target_parameters",       "use_bdlora",   "use_qalora",  "velora_config"};

/// Keys that matter to how a new adapter is made or run elsewhere, not to what a saved one
/// computes.
constexpr std::array kIgnoredKeys = {"auto_mapping",    "corda_config",       "eva_config",   "lora_ga_config",
                                     "megatron_config", "megatron_core",      "peft_version", "qalora_group_size",
                                     "runtime_config",  "ensure_weight_tying"};

/// Initialisations that change the base weights in a way that cannot be found again from the original ones.
constexpr std::array kResidualInitialisations = {"pissa_niter_", "loftq", "corda", "lora_ga"};

constexpr std::string_view kBiasKinds[] = {"none", "all", "lora_only"};

void refuse_other_maths(ConfigReader& reader, std::string_view where) {
  for (const std::string key : kRefusedKeys) {
    const auto* value = reader.find(key);
    const bool used = value != nullptr && is_truthy(*value);
    require<FormatError>(!used,
                         "[{}] {} must be unused, because it changes what the adapter computes and "
                         "is not built here; found {:?}; convert the adapter to plain LoRA",
                         where, key, value == nullptr ? "" : value->dump().substr(0, 120));
  }
}

void read_rank(ConfigReader& reader, PeftLoraConfig& config) {
  if (const auto* value = reader.find("r")) {
    reader.check(value->is_number_integer(), "r", "be a whole number", *value);
    config.r = reader.whole_number("r", *value, 1);
  }
  reader.read("lora_alpha", config.lora_alpha);
  const bool is_usable = std::abs(config.lora_alpha) <= static_cast<double>(kMaxConfigNumber);
  reader.check(is_usable, "lora_alpha", fmt::format("be a number from {0} to {1}", -kMaxConfigNumber, kMaxConfigNumber),
               config.lora_alpha);
  reader.read("alpha_pattern", config.alpha_pattern, kMaxConfigNumber);
}

void read_dropout(ConfigReader& reader, PeftLoraConfig& config) {
  reader.read("lora_dropout", config.lora_dropout);
  const bool is_probability = config.lora_dropout >= 0 && config.lora_dropout < 1;
  reader.check(is_probability, "lora_dropout", "be at least 0 and less than 1", config.lora_dropout);
}

void read_bias(ConfigReader& reader, PeftLoraConfig& config) {
  if (const auto* value = reader.find("bias")) {
    config.bias = reader.text("bias", *value);
    const bool known = std::ranges::find(kBiasKinds, config.bias) != std::end(kBiasKinds);
    reader.check(known, "bias", "be none, all or lora_only", *value);
  }
  reader.read("lora_bias", config.lora_bias);
}

void read_layers(ConfigReader& reader, PeftLoraConfig& config) {
  if (const auto* value = reader.find("layers_to_transform")) {
    std::vector<int64_t> layers;
    const OrderedJson list = value->is_array() ? *value : OrderedJson::array({*value});
    for (const auto& item : list) layers.push_back(reader.whole_number("layers_to_transform", item, 0));
    if (!layers.empty()) config.layers_to_transform = layers;  // to PEFT none are all
  }
  if (const auto* value = reader.find("layers_pattern")) {
    config.layers_pattern = value->is_string() ? std::vector{value->get<std::string>()} : reader.texts("layers_pattern", *value);
    std::erase(config.layers_pattern, "");
  }
}

void read_token_indices(ConfigReader& reader, PeftLoraConfig& config) {
  constexpr const char* kKey = "trainable_token_indices";
  const auto* value = reader.find(kKey);
  if (value == nullptr) return;
  if (!value->is_object()) {
    config.trainable_token_indices = reader.whole_numbers(kKey, *value);
    return;
  }
  auto& by_module = config.trainable_token_indices.emplace().emplace<1>();
  for (const auto& [module, ids] : value->items()) by_module.emplace_back(module, reader.whole_numbers(kKey, ids));
}

void read_initialisation(ConfigReader& reader, PeftLoraConfig& config, ParsedPeftConfig& parsed) {
  const auto* value = reader.find("init_lora_weights");
  if (value == nullptr) return;
  std::string& name = config.init_lora_weights;
  if (value->is_boolean()) {
    name = value->get<bool>() ? "true" : "false";
    return;
  }
  name = reader.text("init_lora_weights", *value);
  std::string lower = name;
  std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (std::ranges::any_of(kResidualInitialisations, [&](const char* start) { return lower.starts_with(start); })) {
    parsed.warnings.push_back(
        fmt::format("init_lora_weights is {:?}: unless the adapter was converted when it was saved, "
                    "it is right only on the residual base weights of that initialisation, not on "
                    "the original model",
                    name));
  }
}

void note_ignored_keys(ConfigReader& reader, ParsedPeftConfig& parsed) {
  for (const char* key : kIgnoredKeys) reader.find(key);
  for (const char* key : {"megatron_config", "runtime_config", "ensure_weight_tying"}) {
    const auto* value = reader.find(key);
    if (value != nullptr && is_truthy(*value)) {
      parsed.warnings.push_back(fmt::format("{} is ignored", key));
    }
  }
  parsed.unknown_keys = reader.keys_not_asked_for();
}

OrderedJson token_indices_to_json(const std::optional<TokenIndices>& indices) {
  if (!indices) return nullptr;
  if (const auto* ids = std::get_if<0>(&*indices)) return *ids;
  OrderedJson map = OrderedJson::object();
  for (const auto& [module, ids] : std::get<1>(*indices)) map.emplace(module, ids);
  return map;
}

/// PEFT takes one expression in place of a list of one, and most of its configs hold that.
OrderedJson layers_pattern_to_json(const std::vector<std::string>& patterns) {
  if (patterns.size() == 1) return patterns.front();
  return or_null(patterns);
}

OrderedJson to_map(const PeftLoraConfig::Patterns& patterns) {
  OrderedJson map = OrderedJson::object();
  for (const auto& [expression, value] : patterns) map.emplace(expression, value);
  return map;
}

OrderedJson to_map(const PeftLoraConfig::AlphaPatterns& patterns) {
  OrderedJson map = OrderedJson::object();
  for (const auto& [expression, value] : patterns) map.emplace(expression, whole_if_possible(value));
  return map;
}

OrderedJson loftq_to_json(const std::optional<PeftLoraConfig::Loftq>& loftq) {
  if (!loftq) return OrderedJson::object();
  return {{"loftq_bits", loftq->bits}, {"loftq_iter", loftq->iter}};
}

void read_loftq(ConfigReader& reader, PeftLoraConfig& config) {
  const auto* value = reader.find("loftq_config");
  if (value == nullptr || !is_truthy(*value)) return;
  reader.check(value->is_object(), "loftq_config", "be a map", *value);
  const std::string where = fmt::format("{}: loftq_config", reader.where());
  ConfigReader inner(*value, where);
  config.loftq.emplace();
  inner.read("loftq_bits", config.loftq->bits, 1);
  inner.read("loftq_iter", config.loftq->iter, 1);
}

OrderedJson initialisation_to_json(const std::string& name) {
  if (name == "true" || name == "false") return name == "true";
  return name;
}

/// The keys that LoRA and AdaLoRA share.
void read_shared(ConfigReader& reader, PeftLoraConfig& config, ParsedPeftConfig& parsed, std::string_view where) {
  refuse_other_maths(reader, where);
  read_origin(reader, config);
  reader.read("use_rslora", config.use_rslora);
  reader.read("use_dora", config.use_dora);
  reader.read("fan_in_fan_out", config.fan_in_fan_out);
  reader.read("target_modules", config.target_modules);
  reader.read("exclude_modules", config.exclude_modules);
  reader.read("modules_to_save", config.modules_to_save);
  read_rank(reader, config);
  read_dropout(reader, config);
  read_bias(reader, config);
  read_layers(reader, config);
  read_token_indices(reader, config);
  read_initialisation(reader, config, parsed);
  read_loftq(reader, config);
}

PeftLoraConfig read_lora(ConfigReader& reader, ParsedPeftConfig& parsed, std::string_view where) {
  PeftLoraConfig config;
  read_shared(reader, config, parsed, where);
  reader.read("rank_pattern", config.rank_pattern, 1);
  return config;
}

void read_kept_ranks(ConfigReader& reader, PeftAdaLoraConfig& config) {
  const auto* value = reader.find("rank_pattern");
  if (value == nullptr) return;
  reader.check(value->is_object(), "rank_pattern", "be a map from modules to lists of true and false", *value);
  auto& pattern = config.rank_pattern.emplace();
  for (const auto& [module, list] : value->items()) {
    reader.check(list.is_array() && std::ranges::all_of(list, [](const auto& item) { return item.is_boolean(); }), "rank_pattern",
                 "hold lists of true and false", list);
    reader.check(static_cast<int64_t>(list.size()) == config.init_r, "rank_pattern", "hold init_r entries per module", list);
    pattern[module] = list.template get<std::vector<bool>>();
  }
}

PeftAdaLoraConfig read_adalora(ConfigReader& reader, ParsedPeftConfig& parsed, std::string_view where) {
  PeftAdaLoraConfig config;
  read_shared(reader, config.lora, parsed, where);
  require<FormatError>(!config.lora.use_dora, "[{}] use_dora must be false with AdaLoRA, which has no such form; found true",
                       where);
  reader.read("init_r", config.init_r, 1);
  reader.read("target_r", config.target_r, 1);
  reader.read("tinit", config.tinit, 0);
  reader.read("tfinal", config.tfinal, 0);
  reader.read("deltaT", config.deltaT, 1);
  reader.read("beta1", config.beta1);
  reader.read("beta2", config.beta2);
  reader.read("orth_reg_weight", config.orth_reg_weight);
  if (const auto* value = reader.find("total_step")) config.total_step = reader.whole_number("total_step", *value, 0, INT64_MAX);
  read_kept_ranks(reader, config);
  return config;
}

/// What the two write alike; keys are sorted by whoever writes the whole.
OrderedJson shared_to_json(const PeftLoraConfig& config) {
  OrderedJson json = OrderedJson::object();
  json["alora_invocation_tokens"] = nullptr;
  json["alpha_pattern"] = to_map(config.alpha_pattern);
  json["arrow_config"] = nullptr;
  json["auto_mapping"] = nullptr;
  json["base_model_name_or_path"] = or_null(config.base_model_name_or_path);
  json["bias"] = config.bias;
  json["corda_config"] = nullptr;
  json["ensure_weight_tying"] = false;
  json["eva_config"] = nullptr;
  json["exclude_modules"] = or_null(config.exclude_modules);
  json["fan_in_fan_out"] = config.fan_in_fan_out;
  json["inference_mode"] = config.inference_mode;
  json["init_lora_weights"] = initialisation_to_json(config.init_lora_weights);
  json["kasa_config"] = nullptr;
  json["layer_replication"] = nullptr;
  json["layers_pattern"] = layers_pattern_to_json(config.layers_pattern);
  json["layers_to_transform"] = or_null(config.layers_to_transform);
  json["loftq_config"] = loftq_to_json(config.loftq);
  json["lora_alpha"] = whole_if_possible(config.lora_alpha);
  json["lora_bias"] = config.lora_bias;
  json["lora_dropout"] = config.lora_dropout;
  json["lora_ga_config"] = nullptr;
  json["megatron_config"] = nullptr;
  json["megatron_core"] = "megatron.core";
  json["modules_to_save"] = or_null(config.modules_to_save);
  json["monteclora_config"] = nullptr;
  json["peft_version"] = kPeftVersion;
  json["qalora_group_size"] = 16;
  json["r"] = config.r;
  json["revision"] = or_null(config.revision);
  json["target_modules"] = or_null(config.target_modules);
  json["target_parameters"] = nullptr;
  json["task_type"] = or_null(config.task_type);
  json["trainable_token_indices"] = token_indices_to_json(config.trainable_token_indices);
  json["use_bdlora"] = nullptr;
  json["use_dora"] = config.use_dora;
  json["use_qalora"] = false;
  json["use_rslora"] = config.use_rslora;
  json["velora_config"] = nullptr;
  return json;
}

std::string write(const PeftLoraConfig& config) {
  OrderedJson json = shared_to_json(config);
  json["peft_type"] = "LORA";
  json["rank_pattern"] = to_map(config.rank_pattern);
  return text_of(sorted(json));
}

OrderedJson kept_ranks_to_json(const PeftAdaLoraConfig& config) {
  if (!config.rank_pattern) return nullptr;
  OrderedJson map = OrderedJson::object();
  for (const auto& [module, kept] : *config.rank_pattern) map[module] = kept;
  return map;
}

std::string write(const PeftAdaLoraConfig& config) {
  OrderedJson json = shared_to_json(config.lora);
  json["peft_type"] = "ADALORA";
  json["init_r"] = config.init_r;
  json["target_r"] = config.target_r;
  json["tinit"] = config.tinit;
  json["tfinal"] = config.tfinal;
  json["deltaT"] = config.deltaT;
  json["beta1"] = config.beta1;
  json["beta2"] = config.beta2;
  json["orth_reg_weight"] = config.orth_reg_weight;
  json["total_step"] = config.total_step;
  json["rank_pattern"] = kept_ranks_to_json(config);
  return text_of(sorted(json));
}

template <class Config>
std::string write(const Config& config) {
  return write_other_config(config);
}

AdapterConfig read_by_type(const std::string& type, ConfigReader& reader, ParsedPeftConfig& parsed, std::string_view where) {
  if (type == "LORA") return read_lora(reader, parsed, where);
  if (type == "ADALORA") return read_adalora(reader, parsed, where);
  if (auto other = read_other_config(type, reader)) return *std::move(other);
  fail<FormatError>(
      "[{}] peft_type must be LORA, ADALORA, IA3, TRAINABLE_TOKENS, PREFIX_TUNING, PROMPT_TUNING or P_TUNING, the methods that "
      "are built "
      "here; found {:?}; use the tool that wrote it, or merge the adapter with that",
      where, type);
}

}  // namespace

ParsedPeftConfig parse_adapter_config(std::string_view json, std::string_view where) {
  constexpr JsonLimits kLimits{.max_bytes = 16u << 20, .max_values = 1'000'000};
  const OrderedJson root = parse_ordered_json(json, where, kLimits);
  require<FormatError>(root.is_object(), "[{}] must be a JSON object; found {}; is it the config of a PEFT adapter?", where,
                       root.type_name());
  ConfigReader reader(root, where);
  ParsedPeftConfig parsed;
  const auto* type = reader.find("peft_type");
  if (type == nullptr && is_adapter_hub_config(root)) {
    parsed.config = read_adapter_hub_config(root, where);
    return parsed;
  }
  require<FormatError>(type != nullptr,
                       "[{}] must name its peft_type; found none; is it the config of a PEFT "
                       "adapter?",
                       where);
  parsed.config = read_by_type(reader.text("peft_type", *type), reader, parsed, where);
  note_ignored_keys(reader, parsed);
  return parsed;
}

std::string write_adapter_config(const AdapterConfig& config) {
  return std::visit([](const auto& method) { return write(method); }, config);
}

}  // namespace lora::formats
