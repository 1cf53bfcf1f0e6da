#include "lora/formats/adapter_config.h"

#include <string>

#include "formats/json.h"
#include "lora/core/error.h"
#include "lora/core/file.h"
#include "support.h"

using namespace lora::formats;
using lora::FormatError;
using lora::testing::message_of;
using Texts = std::vector<std::string>;

namespace {

struct ParsedLora {
  PeftLoraConfig config;
  Texts unknown_keys, warnings;
};

ParsedLora parse(const std::string& json) {
  auto parsed = parse_adapter_config(json, "adapter_config.json");
  return {std::get<PeftLoraConfig>(std::move(parsed.config)), parsed.unknown_keys, parsed.warnings};
}

/// A minimal config with more members.
ParsedLora parse_with(const std::string& members) { return parse(R"({"peft_type":"LORA",)" + members + "}"); }

void refuse(const std::string& json, const std::string& key) {
  INFO(json);
  const auto text = message_of<FormatError>([&] { parse(json); });
  CHECK(text.starts_with("[adapter_config.json]"));
  CHECK(text.find(key) != std::string::npos);
}

void refuse_with(const std::string& key, const std::string& value) {
  refuse(R"({"peft_type":"LORA",")" + key + "\":" + value + "}", key);
}

void check_round_trip(const std::string& text) {
  const auto parsed = parse(text);
  CHECK(parsed.unknown_keys.empty());
  CHECK(parsed.warnings.empty());
  const std::string written = write_adapter_config(parsed.config);
  // Parsed equality; then the text itself, which ends without a line feed in PEFT's files.
  CHECK(Json::parse(written) == Json::parse(text));
  CHECK(written == text + "\n");
}

}  // namespace

TEST_CASE("PEFT's own configs are written again as they were", "[formats]") {
  const auto folder = lora::testing::reference_folder() / "peft_configs";
  for (const char* name : {"lora_all_linear_patterns", "lora_regex_layers", "lora_modules_to_save"}) {
    INFO(name);
    check_round_trip(lora::read_file(folder / (std::string(name) + ".json")));
  }
  const auto patterns = parse(lora::read_file(folder / "lora_all_linear_patterns.json")).config;
  CHECK(patterns.r == 2);
  CHECK(patterns.lora_alpha == 4);
  CHECK(patterns.rank_pattern == PeftLoraConfig::Patterns{{R"(layers\.1\.mlp\.up_proj)", 3}, {"q_proj", 5}});
  CHECK(patterns.alpha_pattern == PeftLoraConfig::AlphaPatterns{{R"(layers\.1\.mlp\.up_proj)", 9}, {"q_proj", 10}});
  CHECK(std::get<Texts>(*patterns.target_modules).size() == 14);
  CHECK(patterns.inference_mode);
  CHECK(patterns.task_type == "CAUSAL_LM");
}

TEST_CASE("every LoRA fixture's config is written again as it was", "[formats]") {
  for (const char* name : {"lora", "lora_gqa", "lora_default_init", "rslora", "lora_all_linear_patterns", "lora_regex_layers",
                           "lora_modules_to_save", "lora_embedding"}) {
    const auto path = lora::testing::outside_data(lora::Path("fixtures/peft") / name / "init/adapter_config.json");
    if (!path) return;
    INFO(name);
    check_round_trip(lora::read_file(*path));
  }
}

TEST_CASE("a minimal config has PEFT's defaults", "[formats]") {
  const auto parsed = parse(R"({"peft_type":"LORA","r":4,"lora_alpha":8.5,"target_modules":["q_proj"]})");
  CHECK(parsed.config.r == 4);
  CHECK(parsed.config.lora_alpha == 8.5);
  CHECK(parsed.config.lora_dropout == 0);
  CHECK(parsed.config.bias == "none");
  CHECK(parsed.config.init_lora_weights == "true");
  CHECK_FALSE(parsed.config.inference_mode);
  CHECK_FALSE(parsed.config.use_rslora);
  CHECK(std::get<Texts>(*parsed.config.target_modules) == Texts{"q_proj"});
  const auto bare = parse(R"({"peft_type":"LORA"})").config;
  CHECK(bare.r == 8);
  CHECK(bare.lora_alpha == 8);
  CHECK_FALSE(bare.target_modules);
}

TEST_CASE("values are read in each form that PEFT accepts", "[formats]") {
  CHECK(std::get<std::string>(*parse_with(R"("target_modules":".*q")").config.target_modules) == ".*q");
  CHECK(std::get<Texts>(*parse_with(R"("exclude_modules":["a"])").config.exclude_modules) == Texts{"a"});
  CHECK(parse_with(R"("layers_to_transform":3)").config.layers_to_transform == std::vector<int64_t>{3});
  CHECK(parse_with(R"("layers_to_transform":[])").config.layers_to_transform == std::nullopt);
  CHECK(parse_with(R"("layers_pattern":"")").config.layers_pattern.empty());
  CHECK(parse_with(R"("layers_pattern":"h")").config.layers_pattern == Texts{"h"});
  CHECK(parse_with(R"("layers_pattern":["h","l"])").config.layers_pattern == Texts{"h", "l"});
  CHECK(parse_with(R"("init_lora_weights":false)").config.init_lora_weights == "false");
  CHECK(parse_with(R"("init_lora_weights":"gaussian")").config.init_lora_weights == "gaussian");
  CHECK(parse_with(R"("alpha_pattern":{"b":16.0,"a":2})").config.alpha_pattern ==
        PeftLoraConfig::AlphaPatterns{{"b", 16}, {"a", 2}});
  const auto fraction = parse_with(R"("alpha_pattern":{"q":10.5},"loftq_config":{"loftq_bits":8})").config;
  CHECK(fraction.alpha_pattern == PeftLoraConfig::AlphaPatterns{{"q", 10.5}});
  CHECK(fraction.loftq == PeftLoraConfig::Loftq{8, 1});
  CHECK_FALSE(parse_with(R"("loftq_config":{})").config.loftq);
  CHECK(parse_with(R"("lora_alpha":null,"r":null,"bias":null)").config.r == 8);
}

TEST_CASE("files that are no LoRA config are refused", "[formats]") {
  for (const char* text : {"", "[]", "1", "{", R"({"peft_type":"LORA"} x)"}) refuse(text, "");
  refuse("{}", "peft_type");
  refuse(R"({"r":8})", "peft_type");
  for (const char* type : {"\"lora\"", "\"LOHA\"", "null", "1", "[]"}) {
    refuse(std::string(R"({"peft_type":)") + type + "}", "peft_type");
  }
  refuse(R"({"peft_type":"LORA","r":8,"r":9})", "\"r\"");
}

TEST_CASE("what changes the maths and is not built here is refused by name", "[formats]") {
  for (const char* key : {"use_qalora", "use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config",
                          "layer_replication", "target_parameters", "alora_invocation_tokens"}) {
    refuse_with(key, "true");
    refuse_with(key, "{\"a\":1}");
    refuse_with(key, "[1]");
    for (const char* unused : {"null", "false", "{}", "[]", "0", "\"\""}) {
      CHECK(parse_with("\"" + std::string(key) + "\":" + unused).unknown_keys.empty());
    }
  }
  CHECK(parse_with(R"("trainable_token_indices":null)").unknown_keys.empty());
}

TEST_CASE("wrong types and values out of range are refused by name", "[formats]") {
  for (const char* value : {"0", "-1", "8.0", "\"8\"", "true", "[]", "1000001", "99999999999999999999", "18446744073709551615"}) {
    refuse_with("r", value);
  }
  for (const char* value : {"\"8\"", "true", "[]", "{}"}) refuse_with("lora_alpha", value);
  for (const char* value : {"-0.1", "1", "1.5", "\"0\"", "true"}) refuse_with("lora_dropout", value);
  for (const char* value : {"\"some\"", "1", "true"}) refuse_with("bias", value);
  for (const char* value : {"1", "\"true\"", "[]"}) {
    refuse_with("use_rslora", value);
    refuse_with("fan_in_fan_out", value);
    refuse_with("lora_bias", value);
    refuse_with("inference_mode", value);
  }
  for (const char* value : {"1", "[1]", "{}", "true", "[[\"a\"]]"}) {
    refuse_with("target_modules", value);
    refuse_with("exclude_modules", value);
    refuse_with("modules_to_save", value);
    refuse_with("layers_pattern", value);
  }
  for (const char* value : {"-1", "[-1]", "[0.5]", "\"1\"", "[\"1\"]"}) {
    refuse_with("layers_to_transform", value);
  }
  for (const char* value : {"[]", "{\"a\":0}", "{\"a\":1.5}", "{\"a\":null}", "{\"a\":\"1\"}", "{\"a\":1e300}", "{\"a\":{}}"}) {
    refuse_with("rank_pattern", value);
  }
  refuse_with("init_lora_weights", "1");
  refuse_with("task_type", "1");
  refuse_with("base_model_name_or_path", "[]");
}

TEST_CASE("unknown keys are listed, initialisations of the base reported", "[formats]") {
  const auto parsed = parse_with(R"("new_key":1,"other":null,"eva_config":{"rho":2})");
  CHECK(parsed.unknown_keys == Texts{"new_key", "other"});
  CHECK(parsed.warnings.empty());
  for (const char* name : {"pissa_niter_16", "loftq", "corda", "lora_ga"}) {
    INFO(name);
    const auto warned = parse_with(R"("init_lora_weights":")" + std::string(name) + "\"");
    REQUIRE(warned.warnings.size() == 1);
    CHECK(warned.warnings[0].find("residual") != std::string::npos);
    CHECK(warned.config.init_lora_weights == name);
  }
  CHECK(parse_with(R"("init_lora_weights":"gaussian")").warnings.empty());
  CHECK(parse_with(R"("runtime_config":{"a":1})").warnings.size() == 1);
}

TEST_CASE("configs are written with PEFT's types, sorted", "[formats]") {
  PeftLoraConfig config;
  config.lora_alpha = 16;
  config.target_modules = Texts{"v_proj", "q_proj"};
  config.rank_pattern = {{"z", 1}, {"a", 2}};
  const std::string text = write_adapter_config(config);
  CHECK(text.find("\"lora_alpha\": 16,") != std::string::npos);
  CHECK(text.find("\"lora_dropout\": 0.0,") != std::string::npos);
  CHECK(text.find("\"init_lora_weights\": true,") != std::string::npos);
  CHECK(text.find("\"z\"") < text.find("\"a\""));
  const auto json = OrderedJson::parse(text);
  std::string previous;
  for (const auto& [key, value] : json.items()) {
    CHECK(previous < key);
    previous = key;
  }
  CHECK(json.size() == 41);
  CHECK(json["target_modules"] == OrderedJson({"v_proj", "q_proj"}));
  const auto back = parse(text).config;
  CHECK(back.rank_pattern == config.rank_pattern);

  config.lora_alpha = 8.5;
  config.base_model_name_or_path = "/m/\xFF";
  CHECK(parse(write_adapter_config(config)).config.lora_alpha == 8.5);
}

TEST_CASE("token indices are read and written in both of PEFT's forms", "[formats][tokens]") {
  const auto indices_of = [](const std::string& value) {
    const auto parsed =
        lora::formats::parse_adapter_config(R"({"peft_type": "LORA", "trainable_token_indices": )" + value + "}", "x");
    return std::get<lora::formats::PeftLoraConfig>(parsed.config).trainable_token_indices;
  };
  CHECK(indices_of("[3, 5]") == lora::formats::TokenIndices(std::vector<int64_t>{3, 5}));
  CHECK(indices_of("[]") == lora::formats::TokenIndices(std::vector<int64_t>{}));
  CHECK_FALSE(indices_of("null"));
  const auto by_module = indices_of(R"({"lm_head": [7], "embed_tokens": [3, 5]})");
  REQUIRE(by_module);
  CHECK(std::get<1>(*by_module)[0] == std::pair<std::string, std::vector<int64_t>>{"lm_head", {7}});
  lora::formats::PeftLoraConfig config;
  config.trainable_token_indices = by_module;
  const auto again = lora::formats::parse_adapter_config(lora::formats::write_adapter_config(config), "x");
  CHECK(std::get<lora::formats::PeftLoraConfig>(again.config).trainable_token_indices == by_module);
  for (const char* bad : {"5", "[-1]", "[1.5]", "[\"a\"]", "{\"a\": 3}", "[99999999999]", "true"}) {
    INFO(bad);
    CHECK_THROWS_AS(indices_of(bad), lora::FormatError);
  }
}

TEST_CASE("a TRAINABLE_TOKENS config has PEFT's keys", "[formats][tokens]") {
  const std::string text = R"({
  "auto_mapping": null,
  "base_model_name_or_path": null,
  "inference_mode": true,
  "init_weights": true,
  "peft_type": "TRAINABLE_TOKENS",
  "peft_version": "0.21.2",
  "revision": null,
  "target_modules": "model.embed_tokens",
  "task_type": "CAUSAL_LM",
  "token_indices": [
    3,
    5
  ]
}
)";
  const auto parsed = lora::formats::parse_adapter_config(text, "x");
  CHECK(parsed.unknown_keys.empty());
  CHECK(std::get<lora::formats::PeftTrainableTokensConfig>(parsed.config).token_indices == std::vector<int64_t>{3, 5});
  CHECK(lora::formats::write_adapter_config(parsed.config) == text);  // as PEFT 0.21.2 writes it
}
