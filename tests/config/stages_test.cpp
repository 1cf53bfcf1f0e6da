#include "lora/config/stages.h"

#include "config/parse.h"
#include "support.h"

using Catch::Matchers::Contains;
using lora::config::parse_staged_config;
using lora::config::StagedConfig;

namespace {

const std::string kStaged = kMinimal +
                            "adapter: {trainable_token_indices: [7, 8]}\n"
                            "train: {max_steps: 9, micro_batch: 2}\n"
                            "stages:\n"
                            "  - name: embeddings\n"
                            "    adapter: {method: trainable_tokens}\n"
                            "    train: {optimizer: {lr: 1.0e-2}}\n"
                            "  - name: lora\n"
                            "    adapter: {r: 4}\n"
                            "    train: {max_steps: 5}\n";

StagedConfig staged(const std::string& text, const std::vector<std::string>& overrides = {},
                    std::string_view command = "finetune") {
  return parse_staged_config(text, "run.yaml", "/runs/a", overrides, "/cwd", command);
}

std::string error_of_stages(const std::string& text, const std::vector<std::string>& overrides = {},
                            std::string_view command = "finetune") {
  try {
    staged(text, overrides, command);
  } catch (const lora::ConfigError& error) {
    return error.what();
  }
  return "";
}

std::string with_stages(const std::string& stages) { return kMinimal + "stages:\n" + stages; }

}  // namespace

TEST_CASE("stages are the common file with their sections over it, one after another", "[config][stages]") {
  const auto run = staged(kStaged);
  REQUIRE(run.is_staged());
  REQUIRE(run.stages.size() == 2);
  const auto& first = run.stages[0].config;
  const auto& second = run.stages[1].config;
  CHECK(run.stages[0].name == "embeddings");
  CHECK(first.run.output_dir == "/runs/a/out/embeddings");
  CHECK(second.run.output_dir == "/runs/a/out/lora");
  CHECK(first.adapter.method == "trainable_tokens");
  CHECK(first.train.optimizer.lr == 1e-2);
  CHECK(first.train.max_steps == 9);
  CHECK_FALSE(first.adapter.tokens_from);
  CHECK(second.adapter.method == "lora");
  CHECK(second.adapter.trainable_token_indices == first.adapter.trainable_token_indices);
  CHECK(second.adapter.tokens_from == lora::Path("/runs/a/out/embeddings/adapter"));
  CHECK(second.train.max_steps == 5);
  CHECK(second.train.micro_batch == 2);
  CHECK(second.data.cache_dir == lora::Path("/runs/a/out/cache"));
  CHECK(second.run.mode == "finetune");
}

TEST_CASE("a file without stages is one run as ever", "[config][stages]") {
  const auto run = staged(kMinimal);
  CHECK_FALSE(run.is_staged());
  CHECK(run.stages.at(0).config == parse(kMinimal));
  CHECK(dump_staged_config(run) == dump_run_config(run.common));
}

TEST_CASE("a dumped staged run is the same run", "[config][stages]") {
  const auto run = staged(kStaged, {"stages.lora.train.max_steps=6", "train.micro_batch=3"});
  const auto again = parse_staged_config(dump_staged_config(run), "config.yaml", "/elsewhere", {}, "/cwd", "finetune");
  REQUIRE(again.stages.size() == 2);
  for (size_t i = 0; i < 2; ++i) CHECK(again.stages[i].config == run.stages[i].config);
  CHECK(dump_staged_config(again) == dump_staged_config(run));
}

TEST_CASE("overrides are of all stages, or of one", "[config][stages]") {
  const auto run = staged(kStaged, {"train.max_steps=3", "stages.lora.train.max_steps=4"});
  CHECK(run.stages[0].config.train.max_steps == 3);
  CHECK(run.stages[1].config.train.max_steps == 4);
  CHECK_THAT(error_of_stages(kStaged, {"stages.nope.train.max_steps=4"}), Contains("stages.NAME.section.key"));
  CHECK_THAT(error_of_stages(kStaged, {"stages=4"}), Contains("stages.NAME.section.key"));
  CHECK_THAT(error_of_stages(kStaged, {"stages.lora.train.max_stepz=4"}), Contains("max_steps"));
}

TEST_CASE("an adapter of the same method goes on", "[config][stages]") {
  const auto run = staged(with_stages("  - {name: a}\n  - {name: b, train: {max_steps: 3}}\n"));
  CHECK(run.stages[1].config.adapter.init_from == lora::Path("/runs/a/out/a/adapter"));
  CHECK_FALSE(run.stages[1].config.adapter.tokens_from);
}

TEST_CASE("what the saved adapter says stands in a later stage, but for how the run trains it", "[config][stages]") {
  const std::string text = kMinimal +
                           "adapter: {r: 4, init_lora_weights: pissa, lora_dropout: 0.1, also: {p: {method: prompt, "
                           "num_virtual_tokens: 3}}}\n"
                           "stages:\n  - {name: a}\n  - {name: b, adapter: {lora_alpha: 5, also: {x: {method: bottleneck}}}}\n";
  const auto run = staged(text);
  const auto& [first, second] = std::pair(run.stages[0].config, run.stages[1].config);
  CHECK(first.adapter.r == 4);
  CHECK_FALSE(first.more_adapters.at(0).adapter.init_from);
  CHECK_FALSE(second.adapter.r);  // PiSSA saves twice the rank
  CHECK_FALSE(second.adapter.init_lora_weights);
  CHECK(second.adapter.lora_dropout == 0.1);
  CHECK(second.adapter.lora_alpha == 5);
  REQUIRE(second.more_adapters.size() == 2);
  CHECK(second.more_adapters[0].adapter.init_from == lora::Path("/runs/a/out/a/adapter/p"));
  CHECK_FALSE(second.more_adapters[1].adapter.init_from);
  const auto again = parse_staged_config(dump_staged_config(run), "config.yaml", "/elsewhere", {}, "/cwd", "finetune");
  for (size_t i = 0; i < 2; ++i) CHECK(again.stages[i].config == run.stages[i].config);
}

TEST_CASE("a third stage leaves to the saved adapter what the second left to it", "[config][stages]") {
  const auto run = staged(kMinimal +
                          "adapter: {r: 3}\nstages:\n  - {name: a, adapter: {init_lora_weights: pissa}}\n  - {name: b}\n  - {name: c, "
                          "adapter: {lora_alpha: 5}}\n");
  for (size_t i : {1, 2}) CHECK_FALSE(run.stages[i].config.adapter.r);
  CHECK(run.stages[2].config.adapter.init_from == lora::Path("/runs/a/out/b/adapter"));
  CHECK(run.stages[2].config.adapter.lora_alpha == 5);
  const auto again = parse_staged_config(dump_staged_config(run), "config.yaml", "/elsewhere", {}, "/cwd", "finetune");
  for (size_t i = 0; i < 3; ++i) CHECK(again.stages[i].config == run.stages[i].config);
}

TEST_CASE("stages that cannot be are refused with their line", "[config][stages]") {
  const auto says = [](const std::string& stages, const char* what) {
    INFO(stages);
    CHECK_THAT(error_of_stages(with_stages(stages)), Contains(what));
  };
  says("  - {train: {max_steps: 1}}\n", "[run.yaml:7] a stage must have a name");
  says("  - {name: adapter}\n", "other than adapter");
  says("  - {name: ../x}\n", "must have a name");
  says("  - {name: a}\n  - {name: a}\n", "found a again");
  says("  - {name: a, model: {path: b}}\n", "a stage may have the sections adapter");
  says("  - {name: a, train: {max_stepz: 1}}\n", "train.max_steps");
  says("  - 3\n", "must be a map");
  says("  - {name: a}\n  - {name: b, adapter: {init_from: x}}\n", "found init_from");
  says("  - {name: a, freeze: {train: [norm]}}\n  - {name: b}\n", "freeze.train in a");
  says("  - {name: a}\n  - {name: b, adapter: {method: ia3}}\n", "what stage a trains must have a place in stage b");
  says("  - {name: a, adapter: {also: {p: {method: prompt}}}}\n  - {name: b}\n", "adapter.also.p must be there");
  says("  - {name: a}\n  - {name: b, adapter: {init_lora_weights: olora}}\n", "belongs to the stage that begins the adapter");
  says("  - {name: a, adapter: {method: ptuning}}\n  - {name: b, adapter: {method: ptuning}}\n", "found ptuning");
  says("  - {name: a, adapter: {method: prefix, prefix_projection: true}}\n  - {name: b, adapter: {method: prefix}}\n",
       "found prefix_projection");
  says(
      "  - {name: a, adapter: {method: trainable_tokens, trainable_token_indices: [1]}}\n"
      "  - {name: b, adapter: {trainable_token_indices: [2]}}\n",
      "must be those of stage a");
  CHECK_THAT(error_of_stages(kMinimal + "stages: {}\n"), Contains("must be a list of stages"));
  CHECK_THAT(error_of_stages(kStaged, {}, "train"), Contains("lora finetune alone") || Contains("lora train"));
  CHECK_THAT(error_of(kStaged), Contains("config.yaml in the folder of a stage"));
  CHECK_THAT(error_of_stages(kStaged, {"run.resume=/x/checkpoints/step-1"}), Contains("auto or none"));
}

TEST_CASE("trainable tokens alone need a list, and tokens_from needs tokens", "[config][tokens]") {
  CHECK_THAT(error_of(kMinimal + "adapter: {method: trainable_tokens}\n"), Contains("trainable_token_indices"));
  CHECK_THAT(error_of(kMinimal + "adapter: {method: trainable_tokens, trainable_token_indices: {lm_head: [1]}}\n"),
             Contains("one list"));
  CHECK_THAT(error_of(kMinimal + "adapter: {trainable_token_indices: []}\n"), Contains("must name a token"));
  CHECK_THAT(error_of(kMinimal + "adapter: {trainable_token_indices: [-1]}\n"), Contains("run.yaml:6"));
  CHECK_THAT(error_of(kMinimal + "adapter: {trainable_token_indices: {lm_head: 3}}\n"), Contains("lm_head must be a list"));
  CHECK_THAT(error_of(kMinimal + "adapter: {method: ia3, trainable_token_indices: [1]}\n"), Contains("trainable_tokens"));
  CHECK_THAT(error_of(kMinimal + "adapter: {tokens_from: x}\n"), Contains("needs trainable_token_indices beside it"));
  const auto config = parse(kMinimal + "adapter: {trainable_token_indices: {lm_head: [3], embed_tokens: [4, 5]}}\n");
  const auto again = lora::config::parse_run_config(dump_run_config(config), "c", "/x", {}, "/x", "finetune");
  CHECK(again.adapter.trainable_token_indices == config.adapter.trainable_token_indices);
  CHECK(std::get<1>(*config.adapter.trainable_token_indices)[1].second == std::vector<int64_t>{4, 5});
}
