#include "lora/models/llama/config.h"

#include "core/check.h"
#include "formats/json.h"
#include "formats/model_fields.h"
#include "lora/core/file.h"
#include "lora/core/text.h"

namespace lora::llama {
namespace {

using formats::boolean_from;
using formats::Fields;
using formats::integer_from;
using formats::Json;
using formats::number_from;

void read_rope(const Fields& fields, std::string_view where, LlamaConfig& config) {
  fields.number("rope_theta", config.rope_theta);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const Json* rope = fields.object(key);
    if (rope == nullptr) continue;
    const Fields inner(*rope, where);
    inner.number("rope_theta", config.rope_theta);
    std::string type = "default";
    inner.text("type", type);
    inner.text("rope_type", type);
    require<FormatError>(type == "default",
                         "[{}] {}.rope_type must be default: scaled rotary embeddings change the model; found {}", where, key,
                         type);
  }
}

/// The fields of config.json that a run file may set, each written once.
const std::vector<std::pair<std::string, int64_t LlamaConfig::*>> kIntegers = {
    {"vocab_size", &LlamaConfig::vocab_size},
    {"hidden_size", &LlamaConfig::hidden_size},
    {"intermediate_size", &LlamaConfig::intermediate_size},
    {"num_hidden_layers", &LlamaConfig::num_hidden_layers},
    {"num_attention_heads", &LlamaConfig::num_attention_heads},
    {"num_key_value_heads", &LlamaConfig::num_key_value_heads},
    {"head_dim", &LlamaConfig::head_dim},
    {"max_position_embeddings", &LlamaConfig::max_position_embeddings},
    {"bos_token_id", &LlamaConfig::bos_token_id},
};
const std::vector<std::pair<std::string, double LlamaConfig::*>> kNumbers = {
    {"rms_norm_eps", &LlamaConfig::rms_norm_eps},
    {"rope_theta", &LlamaConfig::rope_theta},
    {"initializer_range", &LlamaConfig::initializer_range},
};
const std::vector<std::pair<std::string, bool LlamaConfig::*>> kBooleans = {
    {"tie_word_embeddings", &LlamaConfig::tie_word_embeddings},
    {"attention_bias", &LlamaConfig::attention_bias},
    {"mlp_bias", &LlamaConfig::mlp_bias},
};

bool set_field(LlamaConfig& config, const std::string& key, const std::string& text) {
  for (const auto& [name, member] : kIntegers) {
    if (name == key) return config.*member = integer_from(key, text), true;
  }
  for (const auto& [name, member] : kNumbers) {
    if (name == key) return config.*member = number_from(key, text), true;
  }
  for (const auto& [name, member] : kBooleans) {
    if (name == key) return config.*member = boolean_from(key, text), true;
  }
  if (key == "eos_token_id") return config.eos_token_ids = {integer_from(key, text)}, true;
  if (key == "pad_token_id") return config.pad_token_id = integer_from(key, text), true;
  return false;
}

std::vector<std::string> field_names() {
  std::vector<std::string> names{"eos_token_id", "pad_token_id"};
  for (const auto& entry : kIntegers) names.push_back(entry.first);
  for (const auto& entry : kNumbers) names.push_back(entry.first);
  for (const auto& entry : kBooleans) names.push_back(entry.first);
  return names;
}

/// Baichuan-13B (ALiBi) and Baichuan 2 (a normalised head) have the same model_type.
void check_baichuan(const Json& object, const Fields& fields, std::string_view where) {
  const auto architectures = object.find("architectures");
  const bool is_named_otherwise =
      architectures != object.end() && architectures->dump().find("BaichuanForCausalLM") != std::string::npos;
  require<FormatError>(
      !fields.has("model_max_length") && !is_named_otherwise,
      "[{}] of the baichuan models this version knows Baichuan-7B (BaiChuanForCausalLM); found another one, whose attention "
      "or head is different",
      where);
}

/// One is written as a number, none as null.
Json end_ids_json(const LlamaConfig& config) {
  const auto& ids = config.eos_token_ids;
  if (ids.empty()) return nullptr;
  return ids.size() == 1 ? Json(ids.front()) : Json(ids);
}

}  // namespace

LlamaConfig parse_llama_config(std::string_view json, std::string_view where) {
  const Json object = formats::parse_json(json, where);
  require<FormatError>(object.is_object(), "[{}] a model's config must be a JSON object", where);
  const Fields fields(object, where);
  std::string model_type, activation = "silu";
  fields.text("model_type", model_type);
  const bool is_baichuan = model_type == "baichuan";
  require<FormatError>(model_type == "llama" || is_baichuan, "[{}] model_type must be llama or baichuan; found \"{}\"", where,
                       model_type);
  if (is_baichuan) check_baichuan(object, fields, where);
  fields.text("hidden_act", activation);
  require<FormatError>(activation == "silu", "[{}] hidden_act must be silu; found \"{}\"", where, activation);
  LlamaConfig config;
  config.fused_qkv = is_baichuan;
  config.max_position_embeddings = is_baichuan ? 4096 : 2048;  // what transformers and the published class assume
  if (is_baichuan) config.vocab_size = 64000;
  config.rms_norm_eps = 1e-6;
  config.num_key_value_heads = config.head_dim = 0;
  for (const auto& [key, member] : kIntegers) fields.integer(key.c_str(), config.*member);
  for (const auto& [key, member] : kNumbers) fields.number(key.c_str(), config.*member);
  for (const auto& [key, member] : kBooleans) fields.boolean(key.c_str(), config.*member);
  fields.integers("eos_token_id", config.eos_token_ids);
  if (object.contains("eos_token_id") && object.at("eos_token_id").is_null()) config.eos_token_ids.clear();
  if (fields.has("pad_token_id")) fields.integer("pad_token_id", config.pad_token_id.emplace());
  read_rope(fields, where, config);
  config.dtype = formats::read_float_dtype(fields, where, config.dtype);
  if (const Json* quantization = fields.object("quantization_config")) {
    config.quantization = formats::parse_quantization_config(quantization->dump(), where);
  }

  if (!fields.has("num_key_value_heads")) config.num_key_value_heads = config.num_attention_heads;
  if (!fields.has("head_dim") && config.num_attention_heads > 0) {
    config.head_dim = config.hidden_size / config.num_attention_heads;
  }
  try {
    check_llama_config(config, where);
  } catch (const ConfigError& error) {
    throw FormatError(error.what());  // a file from outside, not a run file
  }
  return config;
}

LlamaConfig read_llama_config(const Path& directory) {
  require<IoError>(std::filesystem::is_directory(directory), "[model] a model must be a directory; found no directory at {}",
                   directory.string());
  const Path file = directory / "config.json";
  require<IoError>(std::filesystem::exists(file),
                   "[model] a model directory must hold config.json (Hugging Face's layout); {} has none", directory.string());
  return parse_llama_config(read_file(file, 16u << 20), file.string());
}

std::string write_generation_config(const LlamaConfig& config) {
  const Json generation = {{"bos_token_id", config.bos_token_id},
                           {"eos_token_id", end_ids_json(config)},
                           {"pad_token_id", config.pad_token_id ? Json(*config.pad_token_id) : Json()}};
  return generation.dump(2) + "\n";
}

std::string write_llama_config(const LlamaConfig& config) {
  Json json = {
      {"architectures", {config.fused_qkv ? "BaiChuanForCausalLM" : "LlamaForCausalLM"}},
      {"model_type", config.fused_qkv ? "baichuan" : "llama"},
      {"hidden_act", "silu"},
      {"attention_dropout", 0.0},
      {"pretraining_tp", 1},
      {"use_cache", true},
      {"rope_scaling", nullptr},
      {"rope_parameters", {{"rope_theta", config.rope_theta}, {"rope_type", "default"}}},
      {"dtype", torch_name(config.dtype)},
      {"torch_dtype", torch_name(config.dtype)},
      {"pad_token_id", config.pad_token_id ? Json(*config.pad_token_id) : Json()},
  };
  if (config.fused_qkv) {
    json["auto_map"] = {{"AutoConfig", "configuration_baichuan.BaiChuanConfig"},
                        {"AutoModelForCausalLM", "modeling_baichuan.BaiChuanForCausalLM"}};
  }
  json["eos_token_id"] = end_ids_json(config);
  for (const auto& [key, member] : kIntegers) json[key] = config.*member;
  for (const auto& [key, member] : kNumbers) json[key] = config.*member;
  for (const auto& [key, member] : kBooleans) json[key] = config.*member;
  if (config.quantization) {
    json["quantization_config"] =
        formats::parse_json(formats::write_quantization_config(*config.quantization), "quantization_config");
  }
  return json.dump(2) + "\n";
}

LlamaConfig fresh_llama_config(const std::optional<std::string>& preset,
                               const std::vector<std::pair<std::string, std::string>>& fields) {
  LlamaConfig config = preset ? llama_preset(*preset) : LlamaConfig{};
  bool heads_given = false, kv_heads_given = false, head_dim_given = false, hidden_given = false;
  for (const auto& [key, text] : fields) {
    if (!set_field(config, key, text)) {
      fail<ConfigError>("[model.{}] a field of fresh weights must be one of config.json's; did you mean {}?", key,
                        fmt::join(nearest_names(key, field_names(), 2), " or "));
    }
    heads_given |= key == "num_attention_heads";
    kv_heads_given |= key == "num_key_value_heads";
    head_dim_given |= key == "head_dim";
    hidden_given |= key == "hidden_size";
  }
  if (heads_given && !kv_heads_given) config.num_key_value_heads = config.num_attention_heads;
  if ((heads_given || hidden_given) && !head_dim_given && config.num_attention_heads > 0) {
    config.head_dim = config.hidden_size / config.num_attention_heads;
  }
  check_llama_config(config, "model");
  return config;
}

void check_llama_config(const LlamaConfig& config, std::string_view where) {
  constexpr int64_t kMost = 1 << 24;  // far beyond any model, and products of two still fit 64 bits
  for (const auto& [key, member] : kIntegers) {
    const bool may_be_absent = key == "bos_token_id";
    const int64_t value = config.*member;
    require<ConfigError>(may_be_absent || (value > 0 && value <= kMost), "[{}] {} must be between 1 and {}; found {}", where, key,
                         kMost, value);
  }
  require<ConfigError>(config.num_hidden_layers <= 10'000, "[{}] num_hidden_layers must be at most 10000; found {}", where,
                       config.num_hidden_layers);
  require<ConfigError>(config.num_attention_heads % config.num_key_value_heads == 0,
                       "[{}] num_attention_heads must be a multiple of num_key_value_heads; found {} and {}", where,
                       config.num_attention_heads, config.num_key_value_heads);
  require<ConfigError>(!config.fused_qkv || config.num_attention_heads == config.num_key_value_heads,
                       "[{}] a Baichuan has a key for every query; found {} heads and num_key_value_heads {}", where,
                       config.num_attention_heads, config.num_key_value_heads);
  require<ConfigError>(config.head_dim % 2 == 0, "[{}] head_dim must be even for rotary embeddings; found {}", where,
                       config.head_dim);
  require<ConfigError>(config.num_attention_heads <= kMost / config.head_dim,
                       "[{}] num_attention_heads x head_dim must be at most {}; found {} x {}", where, kMost,
                       config.num_attention_heads, config.head_dim);
  require<ConfigError>(config.rms_norm_eps > 0 && config.rope_theta > 0 && config.initializer_range > 0,
                       "[{}] rms_norm_eps, rope_theta and initializer_range must be positive; found {}, {}, {}", where,
                       config.rms_norm_eps, config.rope_theta, config.initializer_range);
}

std::vector<std::pair<std::string, std::vector<int64_t>>> llama_weight_shapes(const LlamaConfig& config) {
  const int64_t hidden = config.hidden_size, inner = config.intermediate_size;
  const int64_t q = config.num_attention_heads * config.head_dim, kv = config.num_key_value_heads * config.head_dim;
  std::vector<std::pair<std::string, std::vector<int64_t>>> shapes;
  const auto projection = [&](const std::string& name, int64_t out, int64_t in, bool bias) {
    shapes.push_back({name + ".weight", {out, in}});
    if (bias) shapes.push_back({name + ".bias", {out}});
  };
  shapes.push_back({"model.embed_tokens.weight", {config.vocab_size, hidden}});
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    shapes.push_back({layer + "input_layernorm.weight", {hidden}});
    if (config.fused_qkv) {
      projection(layer + "self_attn.W_pack", q + 2 * kv, hidden, config.attention_bias);
    } else {
      projection(layer + "self_attn.q_proj", q, hidden, config.attention_bias);
      projection(layer + "self_attn.k_proj", kv, hidden, config.attention_bias);
      projection(layer + "self_attn.v_proj", kv, hidden, config.attention_bias);
    }
    projection(layer + "self_attn.o_proj", hidden, q, config.attention_bias);
    shapes.push_back({layer + "post_attention_layernorm.weight", {hidden}});
    projection(layer + "mlp.gate_proj", inner, hidden, config.mlp_bias);
    projection(layer + "mlp.up_proj", inner, hidden, config.mlp_bias);
    projection(layer + "mlp.down_proj", hidden, inner, config.mlp_bias);
  }
  shapes.push_back({"model.norm.weight", {hidden}});
  if (!config.tie_word_embeddings) shapes.push_back({"lm_head.weight", {config.vocab_size, hidden}});
  return shapes;
}

}  // namespace lora::llama
