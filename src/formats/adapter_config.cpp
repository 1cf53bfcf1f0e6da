#include "lora/formats/adapter_config.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <optional>
#include <string>

#include "core/check.h"
#include "formats/json.h"

namespace lora::formats {
namespace {

constexpr int64_t kMaxRank = 1'000'000;
constexpr std::string_view kPeftVersion = "0.21.2";

/// Keys that change what an adapter computes in ways that are not built here.
constexpr std::array kRefusedKeys = {"alora_invocation_tokens",
                                     "arrow_config",
                                     "kasa_config",
                                     "layer_replication",
                                     "monteclora_config",
                                     "target_parameters",
                                     "use_bdlora",
                                     "use_dora",
                                     "use_qalora",
                                     "trainable_token_indices",
                                     "velora_config"};

/// Keys that matter to how a new adapter is made or run elsewhere, not to what a saved one
/// computes.
constexpr std::array kIgnoredKeys = {"auto_mapping",   "corda_config",       "eva_config",
                                     "loftq_config",   "lora_ga_config",     "megatron_config",
                                     "megatron_core",  "peft_version",       "qalora_group_size",
                                     "runtime_config", "ensure_weight_tying"};

/// Initialisations that also change the base weights.
constexpr std::array kResidualInitialisations = {"pissa", "olora", "loftq", "corda", "lora_ga"};

constexpr std::string_view kBiasKinds[] = {"none", "all", "lora_only"};

/// Python's notion of true.
bool is_truthy(const OrderedJson& value) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number()) return value.get<double>() != 0;
  if (value.is_string()) return !value.get_ref<const std::string&>().empty();
  return !value.empty();
}

/// Takes typed values out of the file's object and notes which keys it was asked for.
class Reader {
 public:
  Reader(const OrderedJson& root, std::string_view where) : root_(root), where_(where) {}

  /// The value of `key`; nothing when it is absent or null.
  const OrderedJson* find(const std::string& key) {
    asked_.push_back(key);
    const auto found = root_.find(key);
    return found == root_.end() || found->is_null() ? nullptr : &*found;
  }

  void read(const std::string& key, bool& out) {
    if (const auto* value = find(key)) {
      check(value->is_boolean(), key, "be true or false", *value);
      out = value->get<bool>();
    }
  }

  void read(const std::string& key, std::optional<std::string>& out) {
    if (const auto* value = find(key)) out = text(key, *value);
  }

  void read(const std::string& key, double& out) {
    if (const auto* value = find(key)) {
      check(value->is_number() && std::isfinite(value->get<double>()), key, "be a number", *value);
      out = value->get<double>();
    }
  }

  void read(const std::string& key, std::vector<std::string>& out) {
    if (const auto* value = find(key)) out = texts(key, *value);
  }

  void read(const std::string& key, std::optional<PeftLoraConfig::Names>& out) {
    const auto* value = find(key);
    if (value == nullptr) return;
    if (value->is_string()) {
      out = value->get<std::string>();
    } else {
      out = texts(key, *value);
    }
  }

  /// Maps of `lower` and more; an alpha may also be written as a float.
  void read(const std::string& key, PeftLoraConfig::Patterns& out, int64_t lower) {
    const auto* value = find(key);
    if (value == nullptr) return;
    check(value->is_object(), key, "be a map from expressions to whole numbers", *value);
    for (const auto& [expression, number] : value->items()) {
      out.emplace_back(expression, whole_number(key, number, lower));
    }
  }

  int64_t whole_number(const std::string& key, const OrderedJson& value, int64_t lower) const {
    std::optional<int64_t> number;
    if (value.is_number_integer()) {
      const bool fits = !value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX;
      if (fits) number = value.get<int64_t>();
    } else if (value.is_number_float()) {
      const auto real = value.get<double>();
      if (std::abs(real) < 0x1p53 && real == std::trunc(real)) number = static_cast<int64_t>(real);
    }
    const bool in_range = number && *number >= lower && *number <= kMaxRank;
    check(in_range, key, fmt::format("be a whole number from {} to {}", lower, kMaxRank), value);
    return *number;
  }

  std::string text(const std::string& key, const OrderedJson& value) const {
    check(value.is_string(), key, "be a text", value);
    return value.get<std::string>();
  }

  std::vector<std::string> texts(const std::string& key, const OrderedJson& value) const {
    check(value.is_array(), key, "be a list of texts", value);
    std::vector<std::string> items;
    for (const auto& item : value) items.push_back(text(key, item));
    return items;
  }

  void check(bool holds, const std::string& key, std::string_view must,
             const OrderedJson& found) const {
    if (holds) return;
    fail<FormatError>("[{}] {} must {}; found {:?}; correct the file", where_, key, must,
                      found.dump().substr(0, 120));
  }

  std::vector<std::string> keys_not_asked_for() const {
    std::vector<std::string> keys;
    for (const auto& [key, value] : root_.items()) {
      if (std::ranges::find(asked_, key) == asked_.end()) keys.push_back(key);
    }
    return keys;
  }

 private:
  const OrderedJson& root_;
  std::string_view where_;
  std::vector<std::string> asked_;
};

void check_method(Reader& reader, std::string_view where) {
  const auto* method = reader.find("peft_type");
  require<FormatError>(method != nullptr,
                       "[{}] must name its peft_type; found none; is it the config of a PEFT "
                       "adapter?",
                       where);
  reader.check(*method == "LORA", "peft_type", "be \"LORA\", the method that is built here",
               *method);
}

void refuse_other_maths(Reader& reader, std::string_view where) {
  for (const std::string key : kRefusedKeys) {
    const auto* value = reader.find(key);
    // An empty list of token indices still asks for the wrapper around the embedding.
    const bool used = value != nullptr && (key == "trainable_token_indices" || is_truthy(*value));
    require<FormatError>(!used,
                         "[{}] {} must be unused, because it changes what the adapter computes and "
                         "is not built here; found {:?}; convert the adapter to plain LoRA",
                         where, key, value == nullptr ? "" : value->dump().substr(0, 120));
  }
}

void read_rank(Reader& reader, PeftLoraConfig& config) {
  if (const auto* value = reader.find("r")) {
    reader.check(value->is_number_integer(), "r", "be a whole number", *value);
    config.r = reader.whole_number("r", *value, 1);
  }
  reader.read("lora_alpha", config.lora_alpha);
  reader.read("rank_pattern", config.rank_pattern, 1);
  reader.read("alpha_pattern", config.alpha_pattern, -kMaxRank);
}

void read_dropout(Reader& reader, PeftLoraConfig& config) {
  reader.read("lora_dropout", config.lora_dropout);
  const bool is_probability = config.lora_dropout >= 0 && config.lora_dropout < 1;
  reader.check(is_probability, "lora_dropout", "be at least 0 and less than 1",
               config.lora_dropout);
}

void read_bias(Reader& reader, PeftLoraConfig& config) {
  if (const auto* value = reader.find("bias")) {
    config.bias = reader.text("bias", *value);
    const bool known = std::ranges::find(kBiasKinds, config.bias) != std::end(kBiasKinds);
    reader.check(known, "bias", "be none, all or lora_only", *value);
  }
  reader.read("lora_bias", config.lora_bias);
}

void read_layers(Reader& reader, PeftLoraConfig& config) {
  if (const auto* value = reader.find("layers_to_transform")) {
    config.layers_to_transform.emplace();
    const OrderedJson list = value->is_array() ? *value : OrderedJson::array({*value});
    for (const auto& item : list) {
      config.layers_to_transform->push_back(reader.whole_number("layers_to_transform", item, 0));
    }
  }
  if (const auto* value = reader.find("layers_pattern")) {
    config.layers_pattern = value->is_string() ? std::vector{value->get<std::string>()}
                                               : reader.texts("layers_pattern", *value);
  }
}

void read_initialisation(Reader& reader, ParsedPeftConfig& parsed) {
  const auto* value = reader.find("init_lora_weights");
  if (value == nullptr) return;
  std::string& name = parsed.config.init_lora_weights;
  if (value->is_boolean()) {
    name = value->get<bool>() ? "true" : "false";
    return;
  }
  name = reader.text("init_lora_weights", *value);
  std::string lower = name;
  std::ranges::transform(lower, lower.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (std::ranges::any_of(kResidualInitialisations,
                          [&](const char* start) { return lower.starts_with(start); })) {
    parsed.warnings.push_back(fmt::format(
        "init_lora_weights is {:?}: unless the adapter was converted when it was saved, "
        "it is right only on the residual base weights of that initialisation, not on "
        "the original model",
        name));
  }
}

void note_ignored_keys(Reader& reader, ParsedPeftConfig& parsed) {
  for (const char* key : kIgnoredKeys) reader.find(key);
  for (const char* key : {"megatron_config", "runtime_config", "ensure_weight_tying"}) {
    const auto* value = reader.find(key);
    if (value != nullptr && is_truthy(*value)) {
      parsed.warnings.push_back(fmt::format("{} is ignored", key));
    }
  }
  parsed.unknown_keys = reader.keys_not_asked_for();
}

template <class T>
OrderedJson or_null(const std::optional<T>& value) {
  return value ? OrderedJson(*value) : OrderedJson();
}

OrderedJson or_null(const std::optional<PeftLoraConfig::Names>& names) {
  if (!names) return nullptr;
  return std::visit([](const auto& value) { return OrderedJson(value); }, *names);
}

OrderedJson or_null(const std::vector<std::string>& list) {
  return list.empty() ? OrderedJson() : OrderedJson(list);
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

/// PEFT types it as a whole number, and writes it so.
OrderedJson alpha_to_json(double alpha) {
  const bool whole = std::abs(alpha) < 0x1p53 && alpha == std::trunc(alpha);
  return whole ? OrderedJson(static_cast<int64_t>(alpha)) : OrderedJson(alpha);
}

OrderedJson initialisation_to_json(const std::string& name) {
  if (name == "true" || name == "false") return name == "true";
  return name;
}

}  // namespace

ParsedPeftConfig parse_peft_lora_config(std::string_view json, std::string_view where) {
  constexpr JsonLimits kLimits{.max_bytes = 16u << 20, .max_values = 200'000};
  const OrderedJson root = parse_ordered_json(json, where, kLimits);
  require<FormatError>(root.is_object(),
                       "[{}] must be a JSON object; found {}; is it the config of a PEFT adapter?",
                       where, root.type_name());
  Reader reader(root, where);
  check_method(reader, where);
  refuse_other_maths(reader, where);

  ParsedPeftConfig parsed;
  PeftLoraConfig& config = parsed.config;
  config.inference_mode = false;  // PEFT's default; its save writes true
  reader.read("inference_mode", config.inference_mode);
  reader.read("base_model_name_or_path", config.base_model_name_or_path);
  reader.read("task_type", config.task_type);
  reader.read("revision", config.revision);
  reader.read("use_rslora", config.use_rslora);
  reader.read("fan_in_fan_out", config.fan_in_fan_out);
  reader.read("target_modules", config.target_modules);
  reader.read("exclude_modules", config.exclude_modules);
  reader.read("modules_to_save", config.modules_to_save);
  read_rank(reader, config);
  read_dropout(reader, config);
  read_bias(reader, config);
  read_layers(reader, config);
  read_initialisation(reader, parsed);
  note_ignored_keys(reader, parsed);
  return parsed;
}

std::string write_peft_lora_config(const PeftLoraConfig& config) {
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
  json["loftq_config"] = OrderedJson::object();
  json["lora_alpha"] = alpha_to_json(config.lora_alpha);
  json["lora_bias"] = config.lora_bias;
  json["lora_dropout"] = config.lora_dropout;
  json["lora_ga_config"] = nullptr;
  json["megatron_config"] = nullptr;
  json["megatron_core"] = "megatron.core";
  json["modules_to_save"] = or_null(config.modules_to_save);
  json["monteclora_config"] = nullptr;
  json["peft_type"] = "LORA";
  json["peft_version"] = kPeftVersion;
  json["qalora_group_size"] = 16;
  json["r"] = config.r;
  json["rank_pattern"] = to_map(config.rank_pattern);
  json["revision"] = or_null(config.revision);
  json["target_modules"] = or_null(config.target_modules);
  json["target_parameters"] = nullptr;
  json["task_type"] = or_null(config.task_type);
  json["trainable_token_indices"] = nullptr;
  json["use_bdlora"] = nullptr;
  json["use_dora"] = false;
  json["use_qalora"] = false;
  json["use_rslora"] = config.use_rslora;
  json["velora_config"] = nullptr;
  // Paths need not be UTF-8.
  return json.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

}  // namespace lora::formats
