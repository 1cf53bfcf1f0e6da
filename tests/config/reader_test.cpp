// One key at a time: types, ranges, choices, and the values of parts that this version does not
// have.
#include <string>

#include "catch.h"
#include "config/parse.h"

using Catch::Matchers::Contains;
using lora::config::Names;

namespace {

struct BadLine {
  std::string line, key, must;
};

}  // namespace

TEST_CASE("a bad value is refused with file, line, key and what must hold", "[config]") {
  const BadLine bad = GENERATE(values<BadLine>({
      // integers
      {"train: {epochs: three}", "train.epochs", "must be an integer; found three"},
      {"train: {epochs: 1.5}", "train.epochs", "must be an integer; found 1.5"},
      {"train: {epochs: 1.0}", "train.epochs", "must be an integer; found 1.0"},
      {"train: {epochs: \"3\"}", "train.epochs", "must be an integer; found the text \"3\"; a number has no quotes"},
      {"train: {epochs: '3'}", "train.epochs", "must be an integer; found the text \"3\""},
      {"train: {epochs: 0x10}", "train.epochs", "must be an integer; found 0x10"},
      {"train: {epochs: 010}", "train.epochs", "must be an integer; found 010"},
      {"train: {epochs: 1_000}", "train.epochs", "must be an integer; found 1_000"},
      {"train: {epochs: true}", "train.epochs", "must be an integer; found true"},
      {"train: {epochs: null}", "train.epochs", "must be an integer; found nothing"},
      {"train: {epochs: [1]}", "train.epochs", "must be an integer; found a list"},
      {"train: {epochs: {a: 1}}", "train.epochs", "must be an integer; found a map"},
      {"train: {epochs: 9223372036854775808}", "train.epochs", "it is out of range"},
      {"train: {epochs: 0}", "train.epochs", "must be at least 1; found 0"},
      {"train: {max_steps: -2}", "train.max_steps", "must be at least -1; found -2"},
      {"train: {micro_batch: 0}", "train.micro_batch", "must be at least 1"},
      {"train: {grad_accum: -1}", "train.grad_accum", "must be at least 1"},
      {"  loader: {workers: 100000}", "data.loader.workers", "must be at least 0 and at most 256; found 100000"},
      {"  loader: {workers: many}", "data.loader.workers", "must be an integer; found many"},
      {"adapter: {r: 0}", "adapter.r", "must be at least 1"},
      {"checkpoint: {keep: 0}", "checkpoint.keep", "must be at least 1"},
      // numbers
      {"train: {clip_norm: .inf}", "train.clip_norm", "must be a number; found .inf"},
      {"train: {clip_norm: .nan}", "train.clip_norm", "must be a number; found .nan"},
      {"train: {clip_norm: 1e999}", "train.clip_norm", "it is out of range"},
      {"train: {clip_norm: -1}", "train.clip_norm", "must be at least 0; found -1"},
      {"train: {optimizer: {lr: 0}}", "train.optimizer.lr", "must be above 0; found 0"},
      {"train: {optimizer: {lr: \"2e-4\"}}", "train.optimizer.lr", "must be a number; found the text \"2e-4\""},
      {"train: {optimizer: {betas: [0.9, 1.0]}}", "train.optimizer.betas[1]", "must be at least 0 and below 1; found 1.0"},
      {"train: {optimizer: {betas: [0.9]}}", "train.optimizer.betas", "must be a list of 2; found 1"},
      {"train: {optimizer: {betas: 0.9}}", "train.optimizer.betas", "must be a list; found 0.9"},
      {"train: {optimizer: {momentum: 1}}", "train.optimizer.momentum", "below 1"},
      {"train: {amp: {loss_scale: 0}}", "train.amp.loss_scale", "must be above 0"},
      {"train: {amp: {loss_scale: dynamical}}", "train.amp.loss_scale", "must be a number; found dynamical"},
      {"train: {amp: {scaler: {factor: 1}}}", "train.amp.scaler.factor", "must be above 1"},
      {"train: {lr_schedule: {power: 0}}", "train.lr_schedule.power", "must be above 0"},
      {"adapter: {lora_dropout: 1}", "adapter.lora_dropout", "must be at least 0 and below 1"},
      {"generate: {top_p: 0}", "generate.top_p", "must be above 0 and at most 1"},
      {"generate: {temperature: -0.1}", "generate.temperature", "must be at least 0"},
      // booleans
      {"train: {optimizer: {bias_correction: yes}}", "train.optimizer.bias_correction", "must be true or false; found yes"},
      {"train: {optimizer: {bias_correction: True}}", "train.optimizer.bias_correction", "must be true or false; found True"},
      {"train: {optimizer: {bias_correction: 1}}", "train.optimizer.bias_correction", "must be true or false; found 1"},
      {"log: {report: \"true\"}", "log.report", "must be true or false; found the text \"true\""},
      // choices
      {"train: {lr_schedule: {type: cosinus}}", "train.lr_schedule.type",
       "must be one of constant, linear, cosine, polynomial; found cosinus; did you mean cosine?"},
      {"train: {amp: {dtype: float32}}", "train.amp.dtype", "must be one of fp32, bf16, fp16; found float32"},
      {"train: {on_nonfinite: halve}", "train.on_nonfinite", "must be one of skip, stop"},
      {"adapter: {method: lroa}", "adapter.method", "bottleneck, none; found lroa; did you mean lora?"},
      {"adapter: {method: lora, init_r: 12}", "adapter.init_r", "belongs to adapter.method adalora; found it with lora"},
      {"adapter: {method: prefix, r: 8}", "adapter.r", "belongs to adapter.method lora; found it with prefix"},
      {"adapter: {method: ia3, lora_alpha: 8}", "adapter.lora_alpha",
       "belongs to adapter.method lora, adalora; found it with ia3"},
      {"adapter: {init_lora_weights: corda}", "adapter.init_lora_weights", "in this version; found corda"},
      {"adapter: {init_lora_weights: eva, eva_config: {rho: 0.5}}", "adapter.eva_config.rho", "must be at least 1"},
      {"adapter: {init_lora_weights: eva, eva_config: {tau: 1.5}}", "adapter.eva_config.tau", "must be"},
      {"adapter: {init_lora_weights: loftq, loftq_config: {loftq_iter: 0}}", "adapter.loftq_config.loftq_iter", "must be"},
      {"adapter: {init_lora_weights: pissa_niter_x}", "adapter.init_lora_weights", "must be one of true"},
      {"adapter: {init_lora_weights: pissa_niter_}", "adapter.init_lora_weights", "must be one of true"},
      {"adapter: {init_lora_weights: 1}", "adapter.init_lora_weights", "must be text; found 1"},
      {"adapter: {bias: yes}", "adapter.bias", "must be one of none, all, lora_only; found yes"},
      // text and paths
      {"tokenizer: {path: 12}", "tokenizer.path", "must be text; found 12; put it in quotes"},
      {"tokenizer: {path: true}", "tokenizer.path", "must be text; found true"},
      {"tokenizer: {path: \"\"}", "tokenizer.path", "must not be empty"},
      {"tokenizer: {path: \"a\\0b\"}", "tokenizer.path", "must not hold a zero byte"},
      {"tokenizer: {path: ~/tok.model}", "tokenizer.path", "~ is expanded by shells only"},
      {"tokenizer: {path: [a]}", "tokenizer.path", "must be text; found a list"},
      {"log: {metrics: /tmp/metrics.jsonl}", "log.metrics", "must be a file inside run.output_dir"},
      {"log: {metrics: ../metrics.jsonl}", "log.metrics", "must be a file inside run.output_dir"},
      {"log: {metrics: a/../../metrics.jsonl}", "log.metrics", "must be a file inside run.output_dir"},
      {"log: {metrics: logs/}", "log.metrics", "must be a file inside run.output_dir"},
      {"log: {metrics: .}", "log.metrics", "must be a file inside run.output_dir"},
      // lists, maps, expressions
      {"freeze: {train: [\"norm\", \"(\"]}", "freeze.train[1]", "must be a regular expression"},
      {"freeze: {freeze: norm}", "freeze.freeze", "must be a list; found norm"},
      {"train: {optimizer: {no_decay: [\"[\"]}}", "train.optimizer.no_decay[0]", "must be a regular expression"},
      {"adapter: {target_modules: \"(q\"}", "adapter.target_modules", "must be a regular expression"},
      {"adapter: {target_modules: {a: b}}", "adapter.target_modules", "must be a list of names or one text; found a map"},
      {"adapter: {target_modules: [q_proj, 3]}", "adapter.target_modules[1]", "must be text; found 3"},
      {"adapter: {target_modules: [q_proj, [v_proj]]}", "adapter.target_modules[1]", "must be text; found a list"},
      {"adapter: {layers_to_transform: [0, -1]}", "adapter.layers_to_transform[1]", "must be at least 0"},
      {"adapter: {rank_pattern: [q_proj]}", "adapter.rank_pattern", "must be a map from names to integers; found a list"},
      {"adapter: {rank_pattern: {q_proj: 0}}", "adapter.rank_pattern.q_proj", "must be at least 1"},
      {"adapter: {rank_pattern: {\"(q\": 4}}", "adapter.rank_pattern.(q", "must be a regular expression"},
      {"adapter: {alpha_pattern: {q_proj: 1.5}}", "adapter.alpha_pattern.q_proj", "must be an integer"},
      {"train: 3", "train", "must be a map of keys; found 3"},
      {"train: {optimizer: adamw}", "train.optimizer", "must be a map of keys; found adamw"},
  }));
  CAPTURE(bad.line);
  const std::string error = error_of(kMinimal + bad.line);
  CHECK_THAT(error, Contains("[run.yaml:6") && Contains(bad.key));
  CHECK_THAT(error, Contains(bad.must));
  CHECK(error.find('\n') == std::string::npos);
}

TEST_CASE("other bad values of the required sections", "[config]") {
  const BadLine bad = GENERATE(values<BadLine>({
      {"run: {output_dir: o, device: cuda:x}", "run.device", "must be auto, cpu, cuda or cuda:N; found cuda:x"},
      {"run: {output_dir: o, device: gpu}", "run.device", "found gpu"},
      {"run: {output_dir: o, device: \"cuda:\"}", "run.device", "found the text \"cuda:\""},
      {"run: {output_dir: o, device: cuda:-1}", "run.device", "found cuda:-1"},
      {"run: {output_dir: o, seed: -1}", "run.seed", "must be at least 0"},
      {"run: {output_dir: o, resume: false}", "run.resume", "must be text; found false"},
      {"run: {output_dir: o, mode: serve}", "run.mode", "must be one of train, finetune, eval, predict; found serve"},
      {"run: {output_dir: null}", "run.output_dir", "must be text; found nothing"},
      {"model: {arch: bert}", "model.arch", "must be one of llama, glm; found bert"},
      {"model: {arch: llama, hidden_size: 64.0}", "model.hidden_size", "must be an integer"},
      {"model: {arch: llama, hidden_size: 0}", "model.hidden_size", "must be at least 1"},
      {"model: {arch: llama, vocab_size: 4294967296}", "model.vocab_size", "at most 2147483647"},
      {"model: {arch: llama, rope_theta: 0}", "model.rope_theta", "must be above 0"},
      {"model: {arch: llama, tie_word_embeddings: 1}", "model.tie_word_embeddings", "must be true or false"},
      {"model: {path: base, dtype: int8}", "model.dtype", "must be one of fp32, bf16, fp16; found int8"},
      {"model: {path: base, offload: gpu}", "model.offload", "must be one of none, cpu, disk; found gpu"},
      {"data: {format: alpacca}", "data.format", "found alpacca; did you mean alpaca?"},
      {"data: {format: 3}", "data.format", "must be text; found 3"},
      {"model: {rope_inv_freq_dtype: bf16}", "model.rope_inv_freq_dtype", "must be one of fp32, fp16"},
      {"data: {max_length: 1}", "data.max_length", "must be at least 2"},
      {"data: {on_long: cut}", "data.on_long", "must be one of truncate, error"},
  }));
  CAPTURE(bad.line);
  CHECK_THAT(error_of(bad.line), Contains("[run.yaml:1] " + bad.key + " ") && Contains(bad.must));
}

TEST_CASE("parts that this version does not have accept their off state only", "[config]") {
  const auto [key, off, other] = GENERATE(table<std::string, std::string, std::string>({
      {"model.fp32_modules", "[]", "[norm]"},
      {"data.eval.shuffle", "false", "true"},
      {"parallel.data", "1", "2"},
      {"parallel.tensor", "1", "2"},
      {"parallel.pipeline", "1", "2"},
      {"parallel.zero", "0", "1"},
      {"parallel.backend", "auto", "nccl"},
      {"parallel.timeout_seconds", "600", "60"},
      {"parallel.connect_timeout_seconds", "300", "60"},
      {"parallel.interface", "null", "eth0"},
      {"log.tensorboard", "false", "true"},
  }));
  CHECK(error_of(kMinimal, {key + "=" + off}) == "");
  CHECK(error_of(kMinimal, {key + "=null"}) == "");
  CHECK(error_of(kMinimal, {key + "=" + other}) == "[--set] " + key + " must be " + off + " in this version; found " + other);
}

TEST_CASE("an off state in quotes is text and refused", "[config]") {
  CHECK_THAT(error_of(kMinimal + "log: {tensorboard: \"false\"}"),
             Contains("log.tensorboard must be false in this version; found \"false\""));
}

TEST_CASE("PEFT's two forms of module names", "[config]") {
  const auto adapter = [](const std::string& keys) { return parse(kMinimal + "adapter: {" + keys + "}").adapter; };
  CHECK(adapter("target_modules: [q_proj, v_proj]").target_modules == Names(std::vector<std::string>{"q_proj", "v_proj"}));
  CHECK(adapter("target_modules: all-linear").target_modules == Names(std::string("all-linear")));
  CHECK(adapter("target_modules: '.*\\.(q|v)_proj'").target_modules == Names(std::string(".*\\.(q|v)_proj")));
  CHECK(adapter("exclude_modules: []").exclude_modules == Names(std::vector<std::string>{}));
}

TEST_CASE("PEFT's single values stand for lists of one", "[config]") {
  const auto adapter = parse(kMinimal + "adapter: {layers_to_transform: 3, layers_pattern: layers}").adapter;
  CHECK(adapter.layers_to_transform == std::vector<int64_t>{3});
  CHECK(adapter.layers_pattern == std::vector<std::string>{"layers"});
}

TEST_CASE("patterns keep their order", "[config]") {
  const auto adapter = parse(kMinimal + "adapter: {rank_pattern: {v_proj: 4, 'layers.0.q_proj': 2, k_proj: 8}}").adapter;
  CHECK(adapter.rank_pattern == lora::config::Patterns{{"v_proj", 4}, {"layers.0.q_proj", 2}, {"k_proj", 8}});
}

TEST_CASE("init_lora_weights is a boolean or a word", "[config]") {
  const auto value = [](const std::string& text) {
    return parse(kMinimal + "adapter: {init_lora_weights: " + text + "}").adapter.init_lora_weights;
  };
  CHECK(value("true") == "true");
  CHECK(value("false") == "false");
  CHECK(value("\"true\"") == "true");
  CHECK(value("gaussian") == "gaussian");
  CHECK(value("orthogonal") == "orthogonal");
  CHECK(value("null") == std::nullopt);
}

TEST_CASE("the loss scale is dynamic or a number", "[config]") {
  const auto value = [](const std::string& text) {
    return parse(kMinimal + "train: {amp: {loss_scale: " + text + "}}").train.amp.static_loss_scale;
  };
  CHECK(value("dynamic") == std::nullopt);
  CHECK(value("1024") == 1024.0);
  CHECK(value("0.5") == 0.5);
}

TEST_CASE("max_skips is another name of max_nonfinite", "[config]") {
  CHECK(parse(kMinimal + "train: {max_skips: 3}").train.max_nonfinite == 3);
  CHECK_THAT(error_of(kMinimal + "train: {max_skips: 3, max_nonfinite: 4}"),
             Contains("train.max_nonfinite and its other name max_skips"));
}

TEST_CASE("null means not given where nothing is a value", "[config]") {
  const auto config = parse(kMinimal + "adapter: {r: null, init_from: ~, target_modules: }\ntokenizer: {path: null}\nfreeze:\n");
  CHECK(!config.adapter.r);
  CHECK(!config.adapter.init_from);
  CHECK(!config.adapter.target_modules);
  CHECK(!config.tokenizer.path);
  CHECK(config.freeze.train.empty());
}

TEST_CASE("a run file is a map", "[config]") {
  CHECK_THAT(error_of("- a\n- b"), Contains("[run.yaml:1] a run file must be a map of sections") && Contains("[a, b]"));
  CHECK_THAT(error_of("hello"), Contains("[run.yaml:1]") && Contains("found hello"));
}
