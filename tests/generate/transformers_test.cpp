// Greedy decoding with rules, and beams, against transformers (tests/reference/make_generation_reference.py).
#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <map>

#include "formats/json.h"
#include "generate/logit_rules.h"
#include "lora/core/file.h"
#include "lora/generate/complete_all.h"
#include "lora/models/llama.h"
#include "support.h"

using namespace lora;
using generate::GenerateOptions;
using generate::Generation;
using generate::PromptRow;
using Ids = std::vector<int64_t>;

namespace {

const formats::Json& reference() {
  static const formats::Json json = [] {
    const Path file = testing::reference_folder() / "generation/expected.json";
    return formats::parse_json(read_file(file), file.string());
  }();
  return json;
}

std::shared_ptr<llama::LlamaForCausalLMImpl> model() {
  auto model = llama::load(testing::reference_folder() / "peft/base", {.device = at::kCPU, .dtype = at::kFloat});
  const at::NoGradGuard no_grad;
  model->lm_head->weight.mul_(reference().at("head_scale").get<double>());
  return model;
}

std::vector<PromptRow> prompts() {
  std::vector<PromptRow> rows;
  for (const auto& ids : reference().at("prompts")) rows.push_back({.row = std::ssize(rows), .ids = ids.get<Ids>()});
  return rows;
}

generate::EarlyStopping early_stopping(const formats::Json& value) {
  if (value.is_string()) return generate::EarlyStopping::kNever;
  return value.get<bool>() ? generate::EarlyStopping::kYes : generate::EarlyStopping::kNo;
}

GenerateOptions options_of(const formats::Json& test) {
  GenerateOptions options;
  const auto& given = test.at("options");
  options.max_new_tokens = reference().at("new_tokens");
  options.stop_ids = test.at("stop_ids").get<Ids>();
  options.repetition_penalty = given.value("repetition_penalty", 1.0);
  options.no_repeat_ngram_size = given.value("no_repeat_ngram_size", 0);
  options.min_new_tokens = given.value("min_new_tokens", 0);
  options.beams.num_beams = options.beams.num_sequences = given.value("num_beams", 1);
  options.beams.length_penalty = given.value("length_penalty", 1.0);
  if (given.contains("early_stopping")) options.beams.early_stopping = early_stopping(given.at("early_stopping"));
  return options;
}

std::vector<float> scores_of(const formats::Json& values) {
  std::vector<float> scores;
  for (const auto& value : values)
    scores.push_back(value.is_null() ? -std::numeric_limits<float>::infinity() : value.get<float>());
  return scores;
}

void check_beams(const Generation& found, const formats::Json& expected) {
  REQUIRE(found.others.size() + 1 == expected.at("sequences").size());
  for (size_t i = 0; i <= found.others.size(); ++i) {
    const Generation& one = i == 0 ? found : found.others[i - 1];
    INFO("sequence " << i);
    CHECK(one.token_ids == expected.at("sequences")[i].get<Ids>());
    CHECK(one.beam_score == Approx(expected.at("sequence_scores")[i].get<double>()).epsilon(1e-5).margin(1e-5));
  }
}

}  // namespace

TEST_CASE("rules change scores as transformers' processors do", "[generate]") {
  for (const auto& test : reference().at("processors")) {
    const std::string name = test.at("name");
    INFO(name);
    GenerateOptions options;
    if (name == "penalty" || name == "all") options.repetition_penalty = 1.3;
    if (name == "reward") options.repetition_penalty = 0.7;
    if (name == "ngram_3" || name == "all") options.no_repeat_ngram_size = 3;
    if (name == "ngram_1") options.no_repeat_ngram_size = 1;
    if (name == "ngram_longer_than_ids") options.no_repeat_ngram_size = 8;
    if (name == "min_new_tokens" || name == "all") options.min_new_tokens = 4, options.stop_ids = {6, 0};
    CHECK(generate::has_rules(options));
    const auto ids = test.at("ids").get<Ids>();
    auto scores = scores_of(test.at("scores"));
    generate::apply_rules(options, ids, std::ssize(ids) - test.at("num_prompt").get<int64_t>(), scores);
    CHECK(scores == scores_of(test.at("processed")));
  }
}

TEST_CASE("end tokens outside the vocabulary are forbidden without harm", "[generate]") {
  GenerateOptions options;
  options.min_new_tokens = 1;
  options.stop_ids = {-1, 1, 3};
  std::vector<float> scores{1, 2, 3};
  generate::apply_rules(options, Ids{0}, 0, scores);
  CHECK(scores == std::vector<float>{1, -std::numeric_limits<float>::infinity(), 3});
}

TEST_CASE("greedy decoding with rules gives transformers' tokens and log-probabilities", "[generate]") {
  const auto llama = model();
  const auto rows = prompts();
  for (const auto& test : reference().at("greedy")) {
    INFO(test.at("name").get<std::string>());
    for (const int64_t sequences : {1, 3, 8}) {
      const auto found = generate::complete_all(*llama, rows, options_of(test), {.max_sequences = sequences}, at::kCPU);
      for (size_t i = 0; i < rows.size(); ++i) {
        INFO("row " << i);
        const auto& expected = test.at("rows")[i];
        REQUIRE(found[i].token_ids == expected.at("token_ids").get<Ids>());
        for (size_t token = 0; token < found[i].logprobs.size(); ++token) {
          CHECK(found[i].logprobs[token] == Approx(expected.at("logprobs")[token].get<double>()).margin(2e-5));
        }
      }
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      CHECK(generate::complete(*llama, rows[i].ids, options_of(test), at::kCPU).token_ids ==
            test.at("rows")[i].at("token_ids").get<Ids>());
    }
  }
}

TEST_CASE("beam search gives transformers' sequences and scores", "[generate]") {
  const auto llama = model();
  const auto rows = prompts();
  for (const auto& test : reference().at("beams")) {
    INFO(test.at("name").get<std::string>());
    for (const int64_t sequences : {1, 64}) {
      const auto found = generate::complete_all(*llama, rows, options_of(test), {.max_sequences = sequences}, at::kCPU);
      for (size_t i = 0; i < rows.size(); ++i) {
        INFO("row " << i);
        check_beams(found[i], test.at("rows")[i]);
      }
    }
  }
}
