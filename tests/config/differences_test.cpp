#include <string>

#include "catch.h"
#include "config/parse.h"

using lora::config::ConfigDifference;
using lora::config::result_changing_differences;

namespace {

std::vector<ConfigDifference> change(const std::string& override_text, const std::string& schedule = "constant") {
  const std::string text = kMinimal + "train: {lr_schedule: {type: " + schedule + "}}\n";
  return result_changing_differences(parse(text), parse(text, {override_text}));
}

}  // namespace

TEST_CASE("equal configurations do not differ", "[config]") {
  CHECK(result_changing_differences(parse(kMinimal), parse(kMinimal)).empty());
}

TEST_CASE("changes of the result are listed with both values", "[config]") {
  CHECK(change("train.optimizer.lr=1e-3") == std::vector<ConfigDifference>{{"train.optimizer.lr", "0.0002", "0.001"}});
  CHECK(change("adapter.r=4") == std::vector<ConfigDifference>{{"adapter.r", "null", "4"}});
  CHECK(change("adapter.target_modules=[q_proj]") ==
        std::vector<ConfigDifference>{{"adapter.target_modules", "null", "[q_proj]"}});
  CHECK(change("train.amp.loss_scale=8") == std::vector<ConfigDifference>{{"train.amp.loss_scale", "dynamic", "8"}});
  CHECK(change("data.train.path=/other.json") ==
        std::vector<ConfigDifference>{{"data.train.path", "/runs/a/train.json", "/other.json"}});
  CHECK(change("run.seed=1") == std::vector<ConfigDifference>{{"run.seed", "0", "1"}});
  CHECK(change("data.loader.drop_last=false").size() == 1);
  CHECK(change("train.micro_batch=4").size() == 1);
  CHECK(change("model.dtype=bf16").size() == 1);
}

TEST_CASE("adapters beside the first: their keys, names and order count", "[config]") {
  const auto with = [](const std::string& also) { return parse(kMinimal + "adapter: {also: {" + also + "}}"); };
  const std::string one = "a: {method: ia3}", two = "b: {method: prefix, num_virtual_tokens: 3}";
  CHECK(result_changing_differences(with(one + ", " + two), with(one + ", " + two)).empty());
  const auto added = result_changing_differences(with(one), with(one + ", " + two));
  REQUIRE(added.size() == 3);
  CHECK(added[0] == ConfigDifference{"adapter.also", "[a]", "[a, b]"});
  CHECK(added[1] == ConfigDifference{"adapter.also.b.method", "null", "prefix"});
  CHECK(added[2] == ConfigDifference{"adapter.also.b.num_virtual_tokens", "null", "3"});
  CHECK(result_changing_differences(with(one + ", " + two), with(one)).size() == 3);
  CHECK(result_changing_differences(with(one + ", " + two), with(two + ", " + one)) ==
        std::vector<ConfigDifference>{{"adapter.also", "[a, b]", "[b, a]"}});
  CHECK(result_changing_differences(with("a: {r: 2}"), with("a: {r: 3}")) ==
        std::vector<ConfigDifference>{{"adapter.also.a.r", "2", "3"}});
  // AdaLoRA's ranks look ahead, wherever it stands.
  const auto longer = [](const std::string& keys) {
    const std::string text = kMinimal + "adapter: {also: {a: {method: adalora" + keys + "}}}";
    return result_changing_differences(parse(text), parse(text, {"train.max_steps=100"})).size();
  };
  CHECK(longer("") == 1);
  CHECK(longer(", total_step: 9") == 0);
}

TEST_CASE("changes that leave the result alone are not listed", "[config]") {
  const std::string harmless = GENERATE("run.output_dir=/moved", "run.resume=none", "run.device=cpu", "run.threads=4",
                                        "log.metrics=m.jsonl", "log.report=false", "log.samples=0", "checkpoint.every_steps=5",
                                        "checkpoint.keep=7", "checkpoint.save_optimizer=false", "data.loader.workers=3",
                                        "data.loader.workers=auto", "data.cache_dir=/fast/tokens", "data.loader.prefetch=9",
                                        "train.log_interval=1", "generate.prompt_lookup_num_tokens=0");
  CAPTURE(harmless);
  CHECK(change(harmless).empty());
  CHECK(change(harmless, "cosine").empty());
}

TEST_CASE("evaluating more often leaves the result alone", "[config]") {
  const std::string text = kMinimal + "  eval: {path: dev.json}\n";
  CHECK(result_changing_differences(parse(text), parse(text, {"train.eval_interval=5"})).empty());
}

TEST_CASE("the length of a run counts only where the learning rate depends on it", "[config]") {
  const std::string longer = GENERATE("train.max_steps=100", "train.epochs=3");
  CHECK(change(longer).empty());
  for (const std::string schedule : {"linear", "cosine", "polynomial"}) {
    CHECK(change(longer, schedule).size() == 1);
  }
}

TEST_CASE("a change from or to a schedule that looks ahead makes the length count", "[config]") {
  const auto constant = parse(kMinimal);
  const auto cosine = parse(kMinimal, {"train.lr_schedule.type=cosine", "train.max_steps=9"});
  CHECK(result_changing_differences(constant, cosine) ==
        std::vector<ConfigDifference>{{"train.max_steps", "-1", "9"}, {"train.lr_schedule.type", "constant", "cosine"}});
  CHECK(result_changing_differences(cosine, constant).size() == 2);
}

TEST_CASE("the length of a run counts where AdaLoRA's ranks go by it", "[config]") {
  const auto longer = [](const std::string& adapter) {
    const std::string text = kMinimal + "adapter: {method: adalora" + adapter + "}\n";
    return result_changing_differences(parse(text), parse(text, {"train.max_steps=100"}));
  };
  CHECK(longer("").size() == 1);
  CHECK(longer(", total_step: 50").empty());
}
