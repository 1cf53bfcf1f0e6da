#include <algorithm>
#include <string>
#include <variant>
#include <vector>

#include "catch.h"
#include "config/flatten.h"
#include "config/parse.h"
#include "lora/config/known_names.h"
#include "lora/core/random.h"

using Catch::Matchers::Contains;
using lora::config::dump_run_config;
using lora::config::flatten;
using lora::config::Names;
using lora::config::Patterns;
using lora::config::RunConfig;

namespace {

/// Every member away from its default, with text that YAML could take for something else.
RunConfig unusual() {
  RunConfig c;
  c.run = {"finetune", "/a dir/#1: x", INT64_MAX, "/a/step 3", "cuda:7", 3, {"joined"}};
  c.model.path = "/mod\"el's\\dir";
  c.model.dtype = "bf16";
  c.model.offload = "disk";
  c.tokenizer.path = "/\xE6\x97\xA5\xE6\x9C\xAC/tok.model";
  c.adapter.method = "none";
  c.adapter.r = 3;
  c.adapter.lora_alpha = 0.1;
  c.adapter.lora_dropout = 1.0 / 3;
  c.adapter.fused_rows = std::vector<std::string>{"q", "v"};
  c.adapter.use_rslora = false;
  c.adapter.init_lora_weights = "false";
  c.adapter.eva_config = {1.5, 0.5, false, true, false, 3};
  c.adapter.loftq_config = {8, 2};
  c.adapter.bias = "none";
  c.adapter.target_modules = Names(std::string(".*\\.(q|v)_proj$"));
  c.adapter.exclude_modules = Names(std::vector<std::string>{"- a", "true", "12", " lead", "line\nbreak", "#x", "a: b"});
  c.adapter.modules_to_save = std::vector<std::string>{"null", "~", "no"};
  c.adapter.layers_pattern = std::vector<std::string>{"h"};
  c.adapter.layers_to_transform = std::vector<int64_t>{5, 0};
  c.adapter.rank_pattern = Patterns{{"z, x", 2}, {"a\\.b#", 1}, {"12", 4}};
  c.adapter.alpha_pattern = Patterns{};
  c.adapter.use_dora = false;
  c.adapter.init_r = 5;
  c.adapter.target_r = 4;
  c.adapter.tinit = 1;
  c.adapter.tfinal = 2;
  c.adapter.deltaT = 3;
  c.adapter.total_step = 40;
  c.adapter.beta1 = 0.5;
  c.adapter.beta2 = 0.25;
  c.adapter.orth_reg_weight = 0;
  c.adapter.feedforward_modules = Names(std::string("all#"));
  c.adapter.num_virtual_tokens = 7;
  c.adapter.encoder_hidden_size = 8;
  c.adapter.encoder_num_layers = 9;
  c.adapter.prefix_projection = true;
  c.adapter.prefix_dropout = 0;
  c.adapter.encoder_dropout = 0.5;
  c.adapter.init_weights = "zero";
  c.adapter.prompt_tuning_init = "TEXT";
  c.adapter.prompt_tuning_init_text = "yes: no";
  c.adapter.encoder_reparameterization_type = "LSTM";
  c.adapter.preset = "houlsby";
  c.adapter.mh_adapter = false;
  c.adapter.output_adapter = true;
  c.adapter.original_ln_before = false;
  c.adapter.is_parallel = true;
  c.adapter.learn_scaling = true;
  c.adapter.reduction_factor = 2.5;
  c.adapter.scaling = -1;
  c.adapter.dropout = 0.125;
  c.adapter.non_linearity = "gelu_new";
  c.adapter.leave_out = std::vector<int64_t>{1};
  c.adapter.init_from = "/from";
  c.adapter.trainable_token_indices = lora::config::TokenIndices(std::vector<int64_t>{3, 5});
  c.freeze.train = std::vector<std::string>{"^bias$"};
  c.freeze.freeze = std::vector<std::string>{"a b", "\t", "c\\d"};
  c.data.format = "sharegpt";
  c.data.prompt_template = lora::formats::PromptTemplate{.prefix = "",
                                                         .system = "a: \"{content}\"\n# {x",
                                                         .user = "{bos}{content}\\",
                                                         .default_system = "true",
                                                         .system_in_user = true,
                                                         .strip = true};
  c.data.train = {"/t.json", false};
  c.data.eval.path = "/e.json";
  c.data.max_source_length = 1;
  c.data.max_target_length = 2;
  c.data.max_length = 3;
  c.data.on_long = "error";
  c.data.packing = true;
  c.train.recompute = "full";
  c.train.offload_activations = true;
  c.data.on_bad_row = "skip";
  c.data.on_overlap = "drop";
  c.data.require_end_token = true;
  c.data.train_on_sop = true;
  c.data.ignore_pad_in_loss = false;
  c.data.prompt_column = "\xF0\x9F\x92\xA1";
  c.data.response_column = "0x10";
  c.data.cache_dir = "/to kens";
  c.data.loader = {std::nullopt, 5, false};
  c.train.epochs = 4;
  c.train.max_steps = 0;
  c.train.micro_batch = 2;
  c.train.grad_accum = 3;
  c.train.clip_norm = 0;
  c.train.amp = {"fp16", 1e-300, {1e30, 1.0000000000000002, 1e-5, 7}};
  c.train.optimizer = {"sgd", 5e-324, {0, 0.9999999999999999}, 1e22, 123456789.125, 0.5, {}, false, false, 16.0};
  c.train.lr_schedule = {"polynomial", 9, 5e-324, 2.5, false};
  c.train.loss_reduction = "all_positions";
  c.train.on_nonfinite = "stop";
  c.train.max_nonfinite = 1;
  c.train.log_interval = 2;
  c.train.eval_interval = 6;
  c.train.early_stop = {3, 1e-300};
  lora::config::known_names().callbacks = {"watch", "on"};
  c.train.callbacks = {"on", "watch"};
  c.checkpoint = {1, 3, false, true, true};
  c.generate = {0, 1, 5, 6, 7, 1.1, 0.5, 2, 8};
  c.eval = {{"exact_match"}, "dict", "/d/words.txt", 12};
  c.log = {"sub dir/m:1.jsonl", false, 0};
  return c;
}

RunConfig fresh() {
  return parse(
      "adapter: {quantization: {bits: 4, type: fp4, double: true, block_size: 128}, tokens_from: rows,\n"
      "          trainable_token_indices: {embed_tokens: [3, 5]},\n"
      "          also: {z-2: {method: prefix, num_virtual_tokens: 3}, a_1: {r: 2}}}\n"
      "run: {output_dir: o}\ndata: {format: text, train: {path: t}}\n"
      "model: {arch: llama, preset: tiny, vocab_size: 300, hidden_size: 8, intermediate_size: 9, "
      "num_hidden_layers: 1,\n"
      "  num_attention_heads: 2, num_key_value_heads: 1, head_dim: 4, max_position_embeddings: 64, "
      "rms_norm_eps: 1.0e-6,\n"
      "  rope_theta: 1e6, tie_word_embeddings: true, initializer_range: 0.02, bos_token_id: 1, "
      "eos_token_id: 2,\n"
      "  pad_token_id: 0, attention_bias: false, mlp_bias: true,\n"
      "  num_layers: 2, inner_hidden_size: 16, max_sequence_length: 65, residual_alpha_layers: 3, mask_token_id: 3, "
      "gmask_token_id: 4,\n  layernorm_epsilon: 1.0e-6, rope_inv_freq_dtype: fp16}");
}

}  // namespace

TEST_CASE("a dumped configuration reads back as the same", "[config]") {
  const RunConfig config =
      GENERATE(parse(kMinimal), parse(kMinimal + "adapter: {method: none, target_modules: [a]}"), fresh(), unusual());
  const std::string text = dump_run_config(config);
  CAPTURE(text);
  const RunConfig again = lora::config::parse_run_config(text, "config.yaml", "/elsewhere", {}, "/cwd", "finetune");
  CHECK(again == config);
  CHECK(dump_run_config(again) == text);
}

TEST_CASE("the round trip above tests every key: each has another value than its default", "[config]") {
  const auto loaded = flatten(unusual()), made = flatten(fresh());
  const auto text_of = [](const auto& keys, const std::string& name) {
    return std::find_if(keys.begin(), keys.end(), [&](const auto& key) { return key.key == name; })->text;
  };
  for (const auto& key : flatten(RunConfig{})) {
    CAPTURE(key.key);
    CHECK((text_of(loaded, key.key) != key.text || text_of(made, key.key) != key.text));
  }
}

TEST_CASE("names of any characters survive the round trip", "[config]") {
  const std::vector<std::string> pieces = {"a", " ",  "#", ":", ": ", " #", "\"", "'", "\\", "\n",   "\t",
                                           "-", "- ", "?", "[", "]",  "{",  "}",  ",", "&",  "*",    "!",
                                           "|", ">",  "%", "@", "`",  "~",  "0",  ".", "e",  "\x01", "\xC3\xA9"};
  lora::SplitMix64 random(7);
  std::vector<std::string> names;
  for (int i = 0; i < 500; ++i) {
    std::string name;
    for (uint64_t length = 1 + random.below(6); length > 0; --length) name += pieces[random.below(pieces.size())];
    names.push_back(name);
  }
  RunConfig config = unusual();
  config.adapter.exclude_modules = Names(names);
  const RunConfig again = parse(dump_run_config(config));
  CHECK(std::get<std::vector<std::string>>(*again.adapter.exclude_modules) == names);
}

TEST_CASE("a dump writes every default out", "[config]") {
  const std::string text = dump_run_config(parse(kMinimal));
  for (const std::string line :
       {"run:\n  mode: finetune\n  output_dir: /runs/a/out\n", "  resume: auto\n", "  method: lora\n",
        "  train:\n    path: /runs/a/train.json\n    shuffle: true\n", "    loss_scale: dynamic\n", "    betas: [0.9, 0.999]\n",
        "    no_decay: [\"bias$\", norm]\n", "  metrics: metrics.jsonl\n", "  max_steps: -1\n"}) {
    CHECK_THAT(text, Contains(line));
  }
  CHECK_THAT(text, !Contains("null"));
}
