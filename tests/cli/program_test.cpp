#include "lora/cli/program.h"

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "lora/core/file.h"
#include "lora/train/callback_registry.h"
#include "lora/train/metrics.h"
#include "support.h"

using namespace lora;
using testing::ScratchFolder;
using train::AfterStep;

namespace {

/// What the callback "watch" saw of the last run that made it.
struct Seen {
  train::CallbackContext run;
  std::vector<int64_t> steps;
  std::vector<int64_t> evaluated;  ///< steps with a held-out loss
};

Seen& seen() {
  static Seen all;
  return all;
}

train::RunCallback watch(const train::CallbackContext& run) {
  seen() = {run, {}, {}};
  return [](const train::StepResult& result) {
    seen().steps.push_back(result.step);
    if (result.eval_loss) seen().evaluated.push_back(result.step);
    return AfterStep::kGoOn;
  };
}

train::RunCallback stop_after_three(const train::CallbackContext&) {
  return [](const train::StepResult& result) { return result.step >= 3 ? AfterStep::kStop : AfterStep::kGoOn; };
}

void register_once() {
  static const bool done = [] {
    train::register_callback("watch", watch);
    train::register_callback("stop_after_three", stop_after_three);
    return true;
  }();
  REQUIRE(done);
}

constexpr const char* kRunFile = R"(
run: {output_dir: out, device: cpu}
model: {arch: llama, vocab_size: 32, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 2,
        max_position_embeddings: 16}
adapter: {method: none}
data: {format: tokens, train: {path: rows.jsonl}, eval: {path: rows.jsonl}}
train: {max_steps: 6, micro_batch: 2, eval_interval: 2}
log: {report: false}
)";

/// A folder with a run file and rows, and the program run there as `lora train`.
class Runs {
 public:
  Runs() {
    register_once();
    folder_.write("run.yaml", kRunFile);
    folder_.write("rows.jsonl", "{\"input_ids\": [1, 5, 7, 9]}\n{\"input_ids\": [1, 6, 8]}\n");
  }

  int train(const std::vector<std::string>& settings) const {
    std::vector<std::string> words = {"lora", "train", "-q", "-c", (folder_ / "run.yaml").string()};
    for (const auto& setting : settings) words.insert(words.end(), {"--set", setting});
    std::vector<char*> argv;
    for (auto& word : words) argv.push_back(word.data());
    return cli::run_program(static_cast<int>(argv.size()), argv.data());
  }

  size_t steps_done() const { return train::MetricsFile::read(out() / "metrics.jsonl").size(); }
  Path out() const { return folder_ / "out"; }

 private:
  ScratchFolder folder_;
};

}  // namespace

TEST_CASE("a registered callback sees every step of a run and its evaluations", "[program]") {
  const Runs runs;
  REQUIRE(runs.train({"train.callbacks=[watch]"}) == 0);
  CHECK(seen().steps == std::vector<int64_t>{1, 2, 3, 4, 5, 6});
  CHECK(seen().evaluated == std::vector<int64_t>{2, 4, 6});
  CHECK(seen().run.total_steps == 6);
  CHECK(seen().run.first_step == 0);
  CHECK(seen().run.output_dir == runs.out());
  // Made anew for the rest of a run.
  REQUIRE(runs.train({"train.callbacks=[watch]", "train.max_steps=8"}) == 0);
  CHECK(seen().steps == std::vector<int64_t>{7, 8});
  CHECK(seen().run.first_step == 6);
}

TEST_CASE("a callback ends a run, which is saved and finished", "[program]") {
  const Runs runs;
  const std::vector<std::string> stopped = {"train.callbacks=[stop_after_three, watch]"};
  REQUIRE(runs.train(stopped) == 0);
  CHECK(runs.steps_done() == 3);
  CHECK(seen().steps == std::vector<int64_t>{1, 2, 3});
  CHECK(std::filesystem::exists(runs.out() / "model/model.safetensors"));
  CHECK(std::filesystem::exists(runs.out() / "checkpoints/step-3/manifest.json"));

  SECTION("the same command finds it finished") {
    seen().steps.clear();
    REQUIRE(runs.train(stopped) == 0);
    CHECK(runs.steps_done() == 3);
    CHECK(seen().steps.empty());
  }
  SECTION("without the callback it goes on") {
    REQUIRE(runs.train({"train.callbacks=[watch]"}) == 0);
    CHECK(seen().steps == std::vector<int64_t>{4, 5, 6});
    CHECK(runs.steps_done() == 6);
    REQUIRE(runs.train({"train.callbacks=[watch, stop_after_three]", "train.max_steps=9"}) == 0);
    CHECK(runs.steps_done() == 7);  // asked again after its first step
  }
}

TEST_CASE("callbacks that nobody registered end the program before anything is written", "[program]") {
  const Runs runs;
  CHECK(runs.train({"train.callbacks=[wacht]"}) == 2);
  CHECK(runs.train({"train.callbacks=[watch, watch]"}) == 2);
  CHECK_FALSE(std::filesystem::exists(runs.out()));
}
