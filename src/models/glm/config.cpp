#include "lora/models/glm/config.h"

#include <algorithm>

#include "core/check.h"
#include "formats/json.h"
#include "formats/model_fields.h"
#include "lora/core/file.h"
#include "lora/core/text.h"

namespace lora::glm {
namespace {

using formats::Fields;
using formats::Json;

/// The fields of config.json that a run file may set, each written once; those that no file may lack come first.
const std::vector<std::pair<std::string, int64_t GlmConfig::*>> kSizes = {
    {"vocab_size", &GlmConfig::vocab_size},
    {"hidden_size", &GlmConfig::hidden_size},
    {"num_layers", &GlmConfig::num_layers},
    {"num_attention_heads", &GlmConfig::num_attention_heads},
    {"inner_hidden_size", &GlmConfig::inner_hidden_size},
    {"max_sequence_length", &GlmConfig::max_sequence_length},
};
const std::vector<std::pair<std::string, int64_t GlmConfig::*>> kTokens = {
    {"bos_token_id", &GlmConfig::bos_token_id},
    {"eos_token_id", &GlmConfig::eos_token_id},
    {"mask_token_id", &GlmConfig::mask_token_id},
    {"gmask_token_id", &GlmConfig::gmask_token_id},
};
const std::vector<std::pair<std::string, double GlmConfig::*>> kNumbers = {
    {"layernorm_epsilon", &GlmConfig::layernorm_epsilon},
    {"initializer_range", &GlmConfig::initializer_range},
};
/// Where [MASK], [gMASK] and <eop> stand beside <sop>, in both published vocabularies.
constexpr int64_t kMaskBeforeBos = 4, kGmaskBeforeBos = 3, kEosAfterBos = 1;

DType rope_dtype_from(const std::string& text, const std::string& where) {
  const DType dtype = parse_float_dtype(text, where);
  require<ConfigError>(dtype == DType::kF16 || dtype == DType::kF32, "[{}] must be float16 or float32; found {}", where, text);
  return dtype;
}

bool set_field(GlmConfig& config, const std::string& key, const std::string& text) {
  for (const auto* list : {&kSizes, &kTokens}) {
    for (const auto& [name, member] : *list) {
      if (name == key) return config.*member = formats::integer_from(key, text), true;
    }
  }
  for (const auto& [name, member] : kNumbers) {
    if (name == key) return config.*member = formats::number_from(key, text), true;
  }
  if (key == "residual_alpha_layers") return config.residual_alpha_layers = formats::integer_from(key, text), true;
  if (key == "pad_token_id") return config.pad_token_id = formats::integer_from(key, text), true;
  if (key == "tie_word_embeddings") return config.tie_word_embeddings = formats::boolean_from(key, text), true;
  if (key == "rope_inv_freq_dtype") return config.rope_inv_freq_dtype = rope_dtype_from(text, "model." + key), true;
  return false;
}

std::vector<std::string> field_names() {
  std::vector<std::string> names{"residual_alpha_layers", "pad_token_id", "tie_word_embeddings", "rope_inv_freq_dtype"};
  for (const auto* list : {&kSizes, &kTokens}) {
    for (const auto& entry : *list) names.push_back(entry.first);
  }
  for (const auto& entry : kNumbers) names.push_back(entry.first);
  return names;
}

/// The end of a vocabulary too small for the published special tokens holds them in their order.
void move_tokens_into(GlmConfig& config) {
  config.bos_token_id = config.vocab_size - 1 - kEosAfterBos;
  config.eos_token_id = config.bos_token_id + kEosAfterBos;
  config.mask_token_id = config.bos_token_id - kMaskBeforeBos;
  config.gmask_token_id = config.bos_token_id - kGmaskBeforeBos;
}

void check_kind(const Fields& fields, std::string_view where) {
  std::string model_type;
  fields.text("model_type", model_type);
  require<FormatError>(model_type == "chatglm", "[{}] model_type must be chatglm; found \"{}\"", where, model_type);
  bool two_dimensional = true;
  fields.boolean("position_encoding_2d", two_dimensional);
  require<FormatError>(two_dimensional, "[{}] position_encoding_2d must be true, as in every published checkpoint; found false",
                       where);
  int64_t bits = 0;
  fields.integer("quantization_bit", bits);
  require<FormatError>(bits == 0,
                       "[{}] quantization_bit must be 0: weights that ChatGLM's own code packed are not read; found {}; "
                       "take the checkpoint in half precision, and quantise it here",
                       where, bits);
}

void require_fields(const Fields& fields, std::string_view where) {
  std::vector<std::string> missing;
  for (const auto& [key, member] : kSizes) {
    if (!fields.has(key.c_str())) missing.push_back(key);
  }
  for (const char* key : {"bos_token_id", "eos_token_id"}) {
    if (!fields.has(key)) missing.emplace_back(key);
  }
  require<FormatError>(missing.empty(),
                       "[{}] a ChatGLM config must say {}: the published defaults are another vocabulary's; "
                       "found none; add what the checkpoint was made with",
                       where, fmt::join(missing, ", "));
}

GlmConfig config_of(const Fields& fields, std::string_view where) {
  GlmConfig config;
  config.pad_token_id = std::nullopt;
  for (const auto& [key, member] : kSizes) fields.integer(key.c_str(), config.*member);
  fields.integer("bos_token_id", config.bos_token_id);
  config.mask_token_id = config.bos_token_id - kMaskBeforeBos;
  config.gmask_token_id = config.bos_token_id - kGmaskBeforeBos;
  for (const auto& [key, member] : kTokens) fields.integer(key.c_str(), config.*member);
  for (const auto& [key, member] : kNumbers) fields.number(key.c_str(), config.*member);
  if (fields.has("pad_token_id")) fields.integer("pad_token_id", config.pad_token_id.emplace());
  config.residual_alpha_layers = config.num_layers;
  fields.integer("residual_alpha_layers", config.residual_alpha_layers);
  fields.boolean("tie_word_embeddings", config.tie_word_embeddings);
  std::string rope = "float16";
  fields.text("rope_inv_freq_dtype", rope);
  config.rope_inv_freq_dtype = rope_dtype_from(rope, fmt::format("{}: rope_inv_freq_dtype", where));
  config.dtype = formats::read_float_dtype(fields, where, DType::kF16);
  if (const Json* quantization = fields.object("quantization_config")) {
    config.quantization = formats::parse_quantization_config(quantization->dump(), where);
  }
  return config;
}

}  // namespace

GlmConfig parse_glm_config(std::string_view json, std::string_view where) {
  const Json object = formats::parse_json(json, where);
  require<FormatError>(object.is_object(), "[{}] a model's config must be a JSON object", where);
  const Fields fields(object, where);
  check_kind(fields, where);
  require_fields(fields, where);
  try {
    const GlmConfig config = config_of(fields, where);
    check_glm_config(config, where);
    return config;
  } catch (const ConfigError& error) {
    throw FormatError(error.what());  // a file from outside, not a run file
  }
}

GlmConfig read_glm_config(const Path& directory) {
  require<IoError>(std::filesystem::is_directory(directory), "[model] a model must be a directory; found no directory at {}",
                   directory.string());
  const Path file = directory / "config.json";
  require<IoError>(std::filesystem::exists(file),
                   "[model] a model directory must hold config.json (Hugging Face's layout); {} has none", directory.string());
  return parse_glm_config(read_file(file, 16u << 20), file.string());
}

std::string write_glm_config(const GlmConfig& config) {
  Json json = {
      {"architectures", {"ChatGLMModel"}},
      {"auto_map",
       {{"AutoConfig", "configuration_chatglm.ChatGLMConfig"},
        {"AutoModel", "modeling_chatglm.ChatGLMForConditionalGeneration"},
        {"AutoModelForSeq2SeqLM", "modeling_chatglm.ChatGLMForConditionalGeneration"}}},
      {"model_type", "chatglm"},
      {"position_encoding_2d", true},
      {"use_cache", true},
      {"torch_dtype", torch_name(config.dtype)},
      {"rope_inv_freq_dtype", torch_name(config.rope_inv_freq_dtype)},
      {"residual_alpha_layers", config.residual_alpha_layers},
      {"tie_word_embeddings", config.tie_word_embeddings},
      {"pad_token_id", config.pad_token_id ? Json(*config.pad_token_id) : Json()},
  };
  for (const auto* list : {&kSizes, &kTokens}) {
    for (const auto& [key, member] : *list) json[key] = config.*member;
  }
  for (const auto& [key, member] : kNumbers) json[key] = config.*member;
  if (config.quantization) {
    json["quantization_config"] =
        formats::parse_json(formats::write_quantization_config(*config.quantization), "quantization_config");
  }
  return json.dump(2) + "\n";
}

GlmConfig fresh_glm_config(const std::optional<std::string>& preset,
                           const std::vector<std::pair<std::string, std::string>>& fields) {
  GlmConfig config = preset ? glm_preset(*preset) : GlmConfig{};
  const auto is_given = [&](std::string_view key) {
    return std::any_of(fields.begin(), fields.end(), [&](const auto& field) { return field.first == key; });
  };
  const auto apply = [&] {
    for (const auto& [key, text] : fields) {
      if (set_field(config, key, text)) continue;
      fail<ConfigError>("[model.{}] a field of fresh weights must be one of config.json's; did you mean {}?", key,
                        fmt::join(nearest_names(key, field_names(), 2), " or "));
    }
  };
  apply();
  if (is_given("vocab_size") && config.vocab_size <= GlmConfig{}.eos_token_id) {
    move_tokens_into(config);
    apply();
  }
  if (is_given("num_layers") && !is_given("residual_alpha_layers")) config.residual_alpha_layers = config.num_layers;
  check_glm_config(config, "model");
  return config;
}

std::vector<std::string> glm_loaded_fields() { return {"rope_inv_freq_dtype", "residual_alpha_layers"}; }

GlmConfig with_loaded_fields(GlmConfig config, const std::vector<std::pair<std::string, std::string>>& fields) {
  const auto allowed = glm_loaded_fields();
  for (const auto& [key, text] : fields) {
    require<ConfigError>(std::ranges::find(allowed, key) != allowed.end(),
                         "[model.{}] over a loaded model only {} can be set, which "
                         "change no weight; found {}; make fresh weights, or leave it out",
                         key, fmt::join(allowed, " and "), key);
    set_field(config, key, text);
  }
  check_glm_config(config, "model");
  return config;
}

void check_glm_config(const GlmConfig& config, std::string_view where) {
  constexpr int64_t kMost = 1 << 24;  // far beyond any model, and products of two still fit 64 bits
  for (const auto& [key, member] : kSizes) {
    const int64_t value = config.*member;
    require<ConfigError>(value > 0 && value <= kMost, "[{}] {} must be between 1 and {}; found {}", where, key, kMost, value);
  }
  for (const int64_t layers : {config.num_layers, config.residual_alpha_layers}) {
    require<ConfigError>(layers > 0 && layers <= 10'000,
                         "[{}] num_layers and residual_alpha_layers must be between 1 and 10000; "
                         "found {}",
                         where, layers);
  }
  require<ConfigError>(
      config.hidden_size % config.num_attention_heads == 0 && config.head_dim() % 4 == 0,
      "[{}] heads must be a multiple of 4 numbers for rotation in two dimensions; found hidden_size {} for {} heads", where,
      config.hidden_size, config.num_attention_heads);
  for (const auto& [key, member] : kTokens) {
    const int64_t id = config.*member;
    require<ConfigError>(id >= 0 && id < config.vocab_size,
                         "[{}] {} must be below vocab_size, {}; found {}; both must be those of "
                         "one version of the model",
                         where, key, config.vocab_size, id);
    for (const auto& [other_key, other] : kTokens) {
      require<ConfigError>(key == other_key || config.*other != id, "[{}] {} and {} must be different tokens; found {} for both",
                           where, key, other_key, id);
    }
  }
  if (config.pad_token_id) {
    const int64_t id = *config.pad_token_id;
    require<ConfigError>(id >= 0 && id < config.vocab_size, "[{}] pad_token_id must be below vocab_size, {}; found {}", where,
                         config.vocab_size, id);
    require<ConfigError>(id != config.bos_token_id && id != config.gmask_token_id && id != config.mask_token_id,
                         "[{}] pad_token_id must not be a token that rows have a place for (bos, gmask, mask); found {}", where,
                         id);
  }
  require<ConfigError>(config.layernorm_epsilon > 0 && config.initializer_range > 0,
                       "[{}] layernorm_epsilon and initializer_range must be positive; found {} and {}", where,
                       config.layernorm_epsilon, config.initializer_range);
}

std::vector<nn::WeightShape> glm_weight_shapes(const GlmConfig& config) {
  const int64_t hidden = config.hidden_size, inner = config.inner_hidden_size;
  std::vector<nn::WeightShape> shapes;
  const auto product = [&](const std::string& name, int64_t out, int64_t in) {
    shapes.push_back({name + ".weight", {out, in}});
    shapes.push_back({name + ".bias", {out}});
  };
  const auto norm = [&](const std::string& name) {
    shapes.push_back({name + ".weight", {hidden}, /*wide=*/true});
    shapes.push_back({name + ".bias", {hidden}, /*wide=*/true});
  };
  shapes.push_back({"transformer.word_embeddings.weight", {config.vocab_size, hidden}});
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = fmt::format("transformer.layers.{}.", i);
    norm(layer + "input_layernorm");
    product(layer + "attention.query_key_value", 3 * hidden, hidden);
    product(layer + "attention.dense", hidden, hidden);
    norm(layer + "post_attention_layernorm");
    product(layer + "mlp.dense_h_to_4h", inner, hidden);
    product(layer + "mlp.dense_4h_to_h", hidden, inner);
  }
  norm("transformer.final_layernorm");
  if (!config.tie_word_embeddings) shapes.push_back({"lm_head.weight", {config.vocab_size, hidden}});
  return shapes;
}

}  // namespace lora::glm
