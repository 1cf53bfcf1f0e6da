#include "lora/config/run_config.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>

#include "catch.h"
#include "config/parse.h"
#include "lora/core/random.h"

using Catch::Matchers::Contains;
using lora::Path;
using lora::config::load_run_config;
using lora::config::Names;
using lora::config::RunConfig;

namespace {

/// A folder that goes with the test.
class ScratchFolder {
 public:
  ScratchFolder() : path_(std::filesystem::temp_directory_path() / ("lora-config-" + std::to_string(std::rand()))) {
    std::filesystem::create_directories(path_);
  }
  ~ScratchFolder() { std::filesystem::remove_all(path_); }
  const Path& path() const { return path_; }

 private:
  Path path_;
};

/// The run file of the command-line contract, with the parts that are off.
constexpr std::string_view kContract = R"(
run:      {mode: finetune, output_dir: out, seed: 0, resume: auto, device: auto}
model:    {path: base, dtype: bf16, offload: none, fp32_modules: []}
tokenizer: {path: base/tokenizer.model}
adapter:  {method: lora, r: 8, lora_alpha: 16, lora_dropout: 0.05, target_modules: [q_proj, v_proj], init_from: null}
freeze:   {train: [], freeze: []}
data:
  format: adgen
  train: {path: train.json, shuffle: true}
  eval:  {path: dev.json}
  max_source_length: 64
  max_target_length: 64
  packing: false
  on_bad_row: error
  on_overlap: warn
  cache_dir: null
  train_on_sop: false
  ignore_pad_in_loss: true
  loader: {workers: 1, prefetch: 2, drop_last: true}
train:
  epochs: 1
  max_steps: -1
  micro_batch: 8
  grad_accum: 1
  clip_norm: 1.0
  amp: {dtype: bf16, loss_scale: dynamic, scaler: {init: 65536, factor: 2, window: 1000, min: 1}}
  optimizer: {type: adamw, lr: 2.0e-4, betas: [0.9, 0.999], eps: 1.0e-8, weight_decay: 0.0, no_decay: ["bias$", "norm"], bias_correction: true}
  lr_schedule: {type: cosine, warmup_steps: 0, end: 0.0}
  recompute: none
  loss_reduction: valid_tokens
  on_nonfinite: skip
  log_interval: 10
  eval_interval: 0
parallel: {data: 1, tensor: 1, pipeline: 1, zero: 0, backend: auto, timeout_seconds: 600, connect_timeout_seconds: 300, interface: null}
checkpoint: {every_steps: 0, keep: 2, save_optimizer: true}
eval:     {metrics: [rouge, bleu4], segmenter: char, max_new_tokens: 256}
generate: {temperature: 0.95, top_p: 0.7, top_k: 0, max_new_tokens: 256}
log:      {metrics: metrics.jsonl, tensorboard: false, report: true}
)";

}  // namespace

TEST_CASE("the contract's run file", "[config]") {
  RunConfig expected;
  expected.run.mode = "finetune";
  expected.run.output_dir = "/runs/a/out";
  expected.model.path = "/runs/a/base";
  expected.model.dtype = "bf16";
  expected.tokenizer.path = "/runs/a/base/tokenizer.model";
  expected.adapter.r = 8;
  expected.adapter.lora_alpha = 16;
  expected.adapter.lora_dropout = 0.05;
  expected.adapter.target_modules = Names(std::vector<std::string>{"q_proj", "v_proj"});
  expected.data.format = "adgen";
  expected.data.train.path = "/runs/a/train.json";
  expected.data.eval.path = "/runs/a/dev.json";
  expected.train.amp.dtype = "bf16";
  expected.train.lr_schedule.type = "cosine";
  CHECK(parse(kContract) == expected);  // every other value shown there is the default
}

TEST_CASE("keys left out keep their defaults", "[config]") {
  RunConfig expected;
  expected.run.mode = "finetune";
  expected.run.output_dir = "/runs/a/out";
  expected.model.path = "/runs/a/base";
  expected.data.format = "alpaca";
  expected.data.train.path = "/runs/a/train.json";
  CHECK(parse(kMinimal) == expected);
  CHECK(expected.data.train.shuffle);
  CHECK_FALSE(expected.data.eval.shuffle);
}

TEST_CASE("paths are absolute and normal", "[config]") {
  const auto config = parse(kMinimal +
                                "tokenizer: {path: ./tok/../t.model}\nadapter: {init_from: "
                                "/abs/./a/}\nlog: {metrics: ./logs//m.jsonl}",
                            {"model.path=.", "run.output_dir=../../x/"});
  CHECK(config.tokenizer.path == Path("/runs/a/t.model"));
  CHECK(config.adapter.init_from == Path("/abs/a"));
  CHECK(config.model.path == Path("/cwd"));
  CHECK(config.run.output_dir == Path("/x"));
  CHECK(config.log.metrics == Path("logs/m.jsonl"));
}

TEST_CASE("resume names a checkpoint or says how", "[config]") {
  CHECK(parse(kMinimal).run.resume == "auto");
  CHECK(parse(kMinimal, {"run.resume=none"}).run.resume == "none");
  CHECK(parse("run: {output_dir: o, resume: old/step-7}\nmodel: {path: b}\ndata: {format: text, "
              "train: {path: t}}")
            .run.resume == "/runs/a/old/step-7");
}

TEST_CASE("anchors, aliases and merge keys work", "[config]") {
  const auto config = parse(
      "run: {output_dir: out}\n"
      "model: {path: &base models/llama}\n"
      "tokenizer: {path: *base}\n"
      "adapter: {target_modules: &names [q_proj, v_proj], modules_to_save: *names}\n"
      "data: {format: text, train: &set {path: a.txt}, eval: *set}\n");
  CHECK(config.tokenizer.path == config.model.path);
  CHECK(config.adapter.modules_to_save == std::vector<std::string>{"q_proj", "v_proj"});
  CHECK(config.data.eval.path == Path("/runs/a/a.txt"));
}

TEST_CASE("a damaged run file is read or refused, and nothing worse", "[config]") {
  lora::SplitMix64 random(11);
  int refused = 0;
  for (int i = 0; i < 300; ++i) {
    std::string text(kContract);
    const uint64_t position = random.below(text.size());
    if (random.below(2) == 0) {
      text[position] = static_cast<char>(random.below(256));
    } else {
      text.erase(position, random.below(20));
    }
    refused += error_of(text).empty() ? 0 : 1;
  }
  CHECK(refused > 100);
  CHECK(refused < 300);
}

TEST_CASE("a run file on disk: its folder is the base, messages name it", "[config]") {
  const ScratchFolder folder;
  const Path file = folder.path() / "run.yaml";
  std::ofstream(file) << kMinimal;
  CHECK(load_run_config(file, {}, "/cwd", "finetune").model.path == folder.path() / "base");
  std::ofstream(file) << kMinimal << "train: {epochs: 0}";
  CHECK_THROWS_WITH(load_run_config(file, {}, "/cwd", "finetune"), Contains("[" + file.string() + ":6] train.epochs"));
}

TEST_CASE("a run file that cannot be read is wrong usage", "[config]") {
  const ScratchFolder folder;
  CHECK_THROWS_AS(load_run_config(folder.path() / "missing.yaml", {}, "/cwd", "finetune"), lora::ConfigError);
  CHECK_THROWS_AS(load_run_config(folder.path(), {}, "/cwd", "finetune"), lora::ConfigError);
  std::ofstream(folder.path() / "huge.yaml") << std::string((1u << 20) + 1, '#');
  CHECK_THROWS_AS(load_run_config(folder.path() / "huge.yaml", {}, "/cwd", "finetune"), lora::ConfigError);
}

TEST_CASE("the run files that come with the program", "[config]") {
  const char* source = std::getenv("LORA_SOURCE_DIR");
  if (source == nullptr) {
    std::cout << "skipped: LORA_SOURCE_DIR is not set\n";
    return;
  }
  const Path folder = Path(source) / "configs";
  CHECK(load_run_config(folder / "finetune_instruction.yaml", {}, "/cwd", "finetune").data.format == "alpaca");
  CHECK(load_run_config(folder / "pretrain_text.yaml", {}, "/cwd", "train").data.format == "text");
  const RunConfig scratch = load_run_config(folder / "train_from_scratch.yaml", {}, "/cwd", "train");
  CHECK(scratch.model.arch == "llama");
  CHECK(scratch.model.preset == "tiny");
  CHECK_FALSE(scratch.model.path);
}
