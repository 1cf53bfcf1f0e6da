#include <string>
#include <utility>
#include <vector>

#include "catch.h"
#include "config/parse.h"
#include "lora/config/known_names.h"
#include "support.h"

using Catch::Matchers::Contains;
using Catch::Matchers::Equals;

TEST_CASE("required keys", "[config]") {
  CHECK_THAT(error_of(""), Contains("[run.yaml] run.output_dir must be given"));
  CHECK_THAT(error_of("run: {output_dir: o}"), Contains("[run.yaml] model.path or model.arch must be given"));
  CHECK_THAT(error_of("run: {output_dir: o}\nmodel: {preset: tiny}"), Contains("model.path or model.arch must be given"));
  CHECK_THAT(error_of("run: {output_dir: o}\nmodel: {path: b}"), Contains("data.format must be given"));
  CHECK_THAT(error_of("run: {output_dir: o}\nmodel: {path: b}\ndata: {format: text}"), Contains("data.train.path must be given"));
}

TEST_CASE("run.mode equals the sub-command", "[config]") {
  const std::string text = kMinimal + "train: {epochs: 1}\n";
  CHECK(parse(text, {"run.mode=train"}, "train").run.mode == "train");
  CHECK(parse(text, {}, "train").run.mode == "train");
  CHECK_THAT(error_of("run: {output_dir: o, mode: finetune}\nmodel: {path: b}\ndata: {format: "
                      "text, train: {path: t}}",
                      {}, "train"),
             Equals("[run.yaml:1] run.mode must equal the sub-command train; found finetune; run "
                    "lora finetune or remove the key"));
}

TEST_CASE("a model is loaded or made", "[config]") {
  const std::string rest = "run: {output_dir: o}\ndata: {format: text, train: {path: t}}\nmodel: ";
  CHECK(error_of(rest + "{arch: llama}").empty());
  CHECK(error_of(rest + "{arch: llama, preset: tiny, vocab_size: 300}").empty());
  CHECK(error_of(rest + "{path: b, dtype: bf16}").empty());
  CHECK(error_of(rest + "{path: b, rope_inv_freq_dtype: fp16, residual_alpha_layers: 28}").empty());
  CHECK_THAT(error_of(rest + "{path: b, num_layers: 2}"), Contains("[run.yaml:3] model.num_layers needs fresh weights"));
  CHECK_THAT(error_of(rest + "{path: b, arch: llama}"), Contains("[run.yaml:3] model.arch needs fresh weights"));
  CHECK_THAT(error_of(rest + "{path: b, preset: tiny}"), Contains("[run.yaml:3] model.preset needs fresh weights"));
  CHECK_THAT(error_of(rest + "{path: b, rope_theta: 1.0e+6}"), Contains("[run.yaml:3] model.rope_theta needs fresh weights"));
}

TEST_CASE("offloading needs a base that is frozen and in files, and something that is kept", "[config]") {
  const std::string rest = "run: {output_dir: o}\ndata: {format: text, train: {path: t}}\n";
  CHECK(error_of(rest + "model: {path: b, offload: disk}").empty());
  CHECK(error_of(rest + "model: {arch: llama, offload: cpu}").empty());
  CHECK_THAT(error_of(rest + "model: {arch: llama, offload: disk}"),
             Contains("[run.yaml:3] model.offload disk streams the weights from the files of model.path"));
  CHECK_THAT(error_of(rest + "model: {path: b, offload: disk}", {}, "train"),
             Contains("model.offload streams the frozen base of lora finetune; found disk with lora train"));
  CHECK(error_of(rest + "model: {path: b, offload: none}", {}, "train").empty());
  CHECK(error_of(kMinimal + "train: {recompute: selective, offload_activations: true}").empty());
  CHECK_THAT(error_of(kMinimal + "train: {offload_activations: true}"),
             Contains("[run.yaml:6] train.offload_activations moves what recomputation keeps; found train.recompute: none"));
}

TEST_CASE("adapters beside the first have names of their own and methods", "[config]") {
  const auto error = [](const std::string& adapter) { return error_of(kMinimal + "adapter: " + adapter); };
  const std::string two = "{method: prefix, also: {side: {method: bottleneck, preset: parallel}, low: {r: 4}}}";
  const auto config = parse(kMinimal + "adapter: " + two);
  REQUIRE(config.more_adapters.size() == 2);
  CHECK(config.more_adapters[0].name == "side");
  CHECK(config.more_adapters[0].adapter.preset == "parallel");
  CHECK(config.more_adapters[1].adapter.method == "lora");
  CHECK(config.more_adapters[1].adapter.r == 4);
  CHECK(parse(kMinimal + "adapter: " + two, {"adapter.also.low.r=8"}).more_adapters[1].adapter.r == 8);
  CHECK(parse(kMinimal, {"adapter.also.x.method=ia3"}).more_adapters.at(0).name == "x");
  CHECK(error("{also: null}").empty());
  CHECK_THAT(error("{also: {default: {r: 2}}}"), Contains("[run.yaml:6] adapter.also.default must have another name"));
  CHECK_THAT(error("{also: {side: {method: none}}}"), Contains("[run.yaml:6] adapter.also.side.method must be a method"));
  CHECK_THAT(error("{method: none, also: {side: {r: 2}}}"),
             Contains("adapter.method must be a method where adapter.also has more"));
  CHECK_THAT(error("{also: {side: {method: ia3, r: 2}}}"),
             Contains("adapter.also.side.r belongs to adapter.method lora; found it with ia3"));
  CHECK_THAT(error("{also: {side: {r: 2}, side: {r: 3}}}"), Contains("side"));
  for (const std::string name : {"a/b", "\"..\"", "\"\"", "\"a b\""}) {
    CAPTURE(name);
    CHECK_THAT(error("{also: {" + name + ": {r: 2}}}"), Contains("must have a name of letters, digits, - and _"));
  }
  CHECK_THAT(error("{also: {side: 3}}"), Contains("[run.yaml:6] adapter.also.side must be a map of keys; found 3"));
  CHECK_THAT(error("{also: [{r: 2}]}"), Contains("adapter.also must be a map of keys"));
  CHECK_THAT(error("{also: {side: {eva_config: {rho: 2}}}}"),
             Contains("adapter.also.side.eva_config belongs to adapter.init_lora_weights eva"));
  CHECK_THAT(error("{also: {side: {init_lora_weights: loftq}}}"),
             Contains("adapter.also.side.init_lora_weights must be that of one adapter"));
}

TEST_CASE("keys of an init belong to it, and loftq needs few bits and the weights before them", "[config]") {
  const auto adapter = [](const std::string& keys) { return kMinimal + "adapter: {" + keys + "}"; };
  const auto eva = parse(adapter("init_lora_weights: eva, eva_config: {rho: 1.5, whiten: true, label_mask_value: 0}"));
  CHECK(eva.adapter.eva_config.rho == 1.5);
  CHECK(eva.adapter.eva_config.whiten == true);
  CHECK(eva.adapter.eva_config.label_mask_value == 0);
  CHECK_FALSE(eva.adapter.eva_config.tau);
  const auto loftq =
      parse(adapter("init_lora_weights: loftq, loftq_config: {loftq_bits: 4, loftq_iter: 3}, quantization: {bits: 4}"));
  CHECK(loftq.adapter.loftq_config.loftq_iter == 3);
  for (const auto& config : {eva, loftq}) CHECK(parse(lora::config::dump_run_config(config)).adapter == config.adapter);
  CHECK_THAT(error_of(adapter("eva_config: {rho: 2}")), Contains("adapter.eva_config belongs to adapter.init_lora_weights eva"));
  CHECK_THAT(error_of(adapter("init_lora_weights: eva, loftq_config: {loftq_iter: 2}")),
             Contains("belongs to adapter.init_lora_weights loftq"));
  CHECK_THAT(error_of(adapter("init_lora_weights: loftq")), Contains("found no adapter.quantization"));
  CHECK_THAT(error_of(adapter("init_lora_weights: loftq, loftq_config: {loftq_bits: 8}, quantization: {bits: 4}")),
             Contains("must be adapter.quantization.bits = 4; found 8"));
  CHECK_THAT(error_of(adapter("init_lora_weights: loftq, quantization: {bits: 4}"), {"model={path: null, arch: llama}"}),
             Contains("reads the plain weights from model.path"));
}

TEST_CASE("a base in few bits: its keys fit each other and the run", "[config]") {
  const auto quantization = [](const std::string& keys) { return kMinimal + "adapter: {quantization: {" + keys + "}}"; };
  const auto given = parse(quantization("bits: 4, type: fp4, double: true, block_size: 128")).adapter.quantization;
  CHECK(given.bits == 4);
  CHECK(given.type == "fp4");
  CHECK(given.double_quantized == true);
  CHECK(given.block_size == 128);
  CHECK_FALSE(parse(kMinimal + "adapter: {quantization: null}").adapter.quantization.bits);
  CHECK(parse(kMinimal, {"adapter.quantization.bits=8"}).adapter.quantization.bits == 8);
  const auto config = parse(quantization("bits: 4, double: true"));
  CHECK(parse(lora::config::dump_run_config(config)).adapter.quantization == config.adapter.quantization);
  CHECK_THAT(error_of(quantization("type: nf4")), Contains("adapter.quantization.bits must be given"));
  CHECK_THAT(error_of(quantization("double: false")), Contains("adapter.quantization.bits must be given"));
  CHECK_THAT(error_of(quantization("bits: 5")), Contains("[run.yaml:6] adapter.quantization.bits must be 4 or 8; found 5"));
  CHECK_THAT(error_of(quantization("bits: 2")), Contains("adapter.quantization.bits"));
  CHECK_THAT(error_of(quantization("bits: 8, type: nf4")), Contains("adapter.quantization.bits takes no type"));
  CHECK_THAT(error_of(quantization("bits: 8, double: false")), Contains("adapter.quantization.bits takes no type"));
  CHECK_THAT(error_of(quantization("bits: 4, type: int8")), Contains("adapter.quantization.type must be one of nf4, fp4"));
  CHECK_THAT(error_of(quantization("bits: 4, block_size: 48")), Contains("must be a power of two from 32 to 4096; found 48"));
  CHECK_THAT(error_of(quantization("bits: 4, block_size: 16")), Contains("adapter.quantization.block_size"));
  CHECK_THAT(error_of(quantization("bits: 4"), {"model.offload=disk"}),
             Contains("model.offload must be none with adapter.quantization"));
  CHECK_THAT(error_of(quantization("bits: 4"), {}, "train"), Contains("found lora train"));
  CHECK_THAT(error_of(quantization("bits: 4"), {"adapter.method=none"}), Contains("adapter.method none"));
}

TEST_CASE("keys that bound each other", "[config]") {
  CHECK(error_of(kMinimal + "train: {optimizer: {lr: 1e-3}, lr_schedule: {end: 1e-3}}").empty());
  CHECK_THAT(error_of(kMinimal + "train:\n  optimizer: {lr: 1e-3}\n  lr_schedule: {end: 2e-3}"),
             Contains("[run.yaml:8] train.lr_schedule.end must be at most train.optimizer.lr = "
                      "0.001; found 0.002"));
  CHECK_THAT(error_of(kMinimal + "train: {amp: {scaler: {init: 2, min: 4}}}"),
             Contains("[run.yaml:6] train.amp.scaler.min must be at most train.amp.scaler.init = 2; found 4"));
  CHECK_THAT(error_of(kMinimal + "train: {eval_interval: 5}"),
             Contains("[run.yaml:6] train.eval_interval must be 0 without data.eval.path; found 5"));
  CHECK(error_of(kMinimal + "train: {eval_interval: 5}", {"data.eval.path=dev.json"}).empty());
}

TEST_CASE("what compares held-out losses needs evaluations on the way", "[config]") {
  const std::vector<std::string> evaluated = {"data.eval.path=dev.json", "train.eval_interval=5"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), evaluated.begin(), evaluated.end());
    return more;
  };
  const auto config =
      parse(kMinimal + "train: {early_stop: {patience: 2, min_delta: 0.5}}\ncheckpoint: {keep_best: true}", evaluated);
  CHECK(config.train.early_stop.patience == 2);
  CHECK(config.train.early_stop.min_delta == 0.5);
  CHECK(config.checkpoint.keep_best);
  CHECK(parse(kMinimal, with({"checkpoint={keep_best: true, load_best_model_at_end: true}"})).checkpoint.load_best_at_end);

  CHECK_THAT(error_of(kMinimal + "checkpoint: {keep_best: true}"),
             Contains("[run.yaml:6] checkpoint.keep_best needs held-out losses"));
  CHECK_THAT(error_of(kMinimal + "train:\n  early_stop: {patience: 2}"),
             Contains("[run.yaml:7] train.early_stop.patience needs held-out losses"));
  CHECK_THAT(error_of(kMinimal + "checkpoint: {keep_best: true}", {"data.eval.path=dev.json"}),
             Contains("found train.eval_interval: 0"));
  CHECK_THAT(error_of(kMinimal + "train: {early_stop: {patience: 2}, eval_interval: 5}"),
             Contains("train.eval_interval must be 0 without"));
  CHECK_THAT(error_of(kMinimal, with({"train.early_stop.min_delta=0.5"})),
             Contains("min_delta belongs to train.early_stop.patience"));
  CHECK_THAT(error_of(kMinimal, with({"checkpoint.load_best_at_end=true"})), Contains("needs what checkpoint.keep_best keeps"));
  CHECK_THAT(error_of(kMinimal, with({"train.early_stop.patience=0"})), Contains("must be at least 1"));
  CHECK_THAT(error_of(kMinimal, with({"train.early_stop={patience: 1, min_delta: -1}"})), Contains("must be at least 0"));
  CHECK_THAT(error_of(kMinimal, with({"train.early_stop=3"})), Contains("train.early_stop must be a map of keys"));
  const std::vector<std::string> named_model = {"adapter.also.model.r=2", "checkpoint.keep_best=true", "freeze.train=['norm']"};
  CHECK_THAT(error_of(kMinimal, with(named_model)), Contains("adapter.also.model must have another name"));
}

TEST_CASE("callbacks are those that the program registered, each once", "[config]") {
  auto& known = lora::config::known_names().callbacks;
  const auto before = std::exchange(known, {});
  CHECK_THAT(error_of(kMinimal + "train: {callbacks: [watch]}"),
             Contains("must be a callback that this program registered, which has none; found watch"));
  CHECK(error_of(kMinimal + "train: {callbacks: []}").empty());
  known = {"watch", "stop"};
  CHECK(parse(kMinimal + "train: {callbacks: [stop, watch]}").train.callbacks == std::vector<std::string>{"stop", "watch"});
  CHECK_THAT(error_of(kMinimal + "train: {callbacks: [watsch]}"),
             Contains("[run.yaml:6] train.callbacks[0] must be one of watch, stop; found watsch; did you mean watch?"));
  CHECK_THAT(error_of(kMinimal + "train: {callbacks: [stop, stop]}"),
             Contains("train.callbacks must name each once; found stop again"));
  CHECK_THAT(error_of(kMinimal + "train: {callbacks: ['']}"), Contains("must not be empty"));
  CHECK_THAT(error_of(kMinimal + "train: {callbacks: stop}"), Contains("must be a list"));
  known = before;
}

TEST_CASE("fields of a loaded model are those that an architecture lets it change", "[config]") {
  auto& known = lora::config::known_names().loaded_fields;
  const auto before = std::exchange(known, {"rope_theta"});
  CHECK(error_of(kMinimal, {"model.rope_theta=5000"}).empty());
  CHECK_THAT(error_of(kMinimal, {"model.rope_inv_freq_dtype=fp16"}), Contains("model.rope_inv_freq_dtype needs fresh weights"));
  known = before;
}

TEST_CASE("metrics are named once", "[config]") {
  CHECK_THAT(error_of(kMinimal + "eval: {metrics: [rouge, bleu4, rouge]}"),
             Contains("[run.yaml:6] eval.metrics must name each once; found rouge again"));
}

TEST_CASE("a saved adapter says its method where the run file does not", "[config]") {
  const lora::testing::ScratchFolder folder;
  const std::string from = "adapter: {init_from: " + folder.path().string() + "}";
  CHECK(parse(kMinimal + from).adapter.method == "lora");  // there is none: whoever loads it says so
  for (const auto& [type, method] :
       {std::pair("\"ADALORA\"", "adalora"), {"\"PREFIX_TUNING\"", "prefix"}, {"\"LORA\"", "lora"}, {"7", "lora"}}) {
    folder.write("adapter_config.json", std::string("{\"peft_type\": ") + type + "}");
    CHECK(parse(kMinimal + from).adapter.method == method);
  }
  folder.write("adapter_config.json", "{\"config\": {}}");
  CHECK(parse(kMinimal + from).adapter.method == "bottleneck");
  folder.write("adapter_config.json", "{\"peft_type\": \"IA3\"}");
  CHECK(parse(kMinimal + "adapter: {method: lora, init_from: " + folder.path().string() + "}").adapter.method == "lora");
}

TEST_CASE("a loss scale of 2^32 is a number like others", "[config]") {
  CHECK(parse(kMinimal + "train: {amp: {dtype: fp16, scaler: {init: 4294967296}}}").train.amp.scaler.init == 0x1p32);
  CHECK(parse(kMinimal + "train: {amp: {scaler: {init: 4.294967296e+9}}}").train.amp.scaler.init == 0x1p32);
}
