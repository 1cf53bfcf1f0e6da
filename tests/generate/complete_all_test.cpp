// Many prompts side by side against one at a time: the same tokens.
#include "lora/generate/complete_all.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "lora/models/llama.h"
#include "support.h"
#include "tiny_model.h"

using namespace lora;
using lora::generate::BatchingOptions;
using lora::generate::complete;
using lora::generate::complete_all;
using lora::generate::GenerateOptions;
using lora::generate::Generation;
using lora::generate::PromptRow;
using lora::generate::row_seed;
using lora::testing::message_of;

namespace {

using Fields = std::vector<std::pair<std::string, std::string>>;

/// A Llama that remembers the form of its passes.
class SeenLlama : public llama::LlamaForCausalLMImpl {
 public:
  explicit SeenLlama(const Fields& fields = {}) : LlamaForCausalLMImpl(config_of(fields)) {}

  at::Tensor hidden(const Batch& batch, nn::KvCache* cache) override {
    passes.push_back(batch.input_ids_BS.sizes().vec());
    masks += batch.attention_mask_BS.defined() ? 1 : 0;
    return LlamaForCausalLMImpl::hidden(batch, cache);
  }

  std::vector<std::vector<int64_t>> passes;
  int64_t masks = 0;

 private:
  static llama::LlamaConfig config_of(const Fields& fields) {
    at::manual_seed(61);
    Fields all = {{"vocab_size", "40"},
                  {"hidden_size", "72"},
                  {"intermediate_size", "100"},
                  {"num_hidden_layers", "3"},
                  {"num_attention_heads", "6"},
                  {"num_key_value_heads", "2"},
                  {"max_position_embeddings", "64"},
                  {"initializer_range", "0.2"}};
    all.insert(all.end(), fields.begin(), fields.end());
    return llama::fresh_llama_config(std::nullopt, all);
  }
};

/// Of different lengths, in no order; their row numbers are not their places.
std::vector<PromptRow> prompts() {
  std::vector<PromptRow> rows;
  for (const int64_t length : {5, 1, 17, 9, 5, 12, 3, 17, 2, 8, 20}) {
    PromptRow row{.row = 100 + 7 * std::ssize(rows), .ids = {}};
    for (int64_t i = 0; i < length; ++i) row.ids.push_back((i * i + 3 * row.row + i) % 40);
    rows.push_back(row);
  }
  return rows;
}

GenerateOptions options_with(int64_t max_new_tokens, std::vector<int64_t> stop_ids = {}) {
  GenerateOptions options;
  options.max_new_tokens = max_new_tokens;
  options.stop_ids = std::move(stop_ids);
  return options;
}

std::vector<Generation> one_by_one(nn::CausalLMImpl& model, const std::vector<PromptRow>& rows, const GenerateOptions& options) {
  std::vector<Generation> results;
  for (const PromptRow& row : rows) {
    GenerateOptions own = options;
    own.seed = row_seed(options.seed, row.row);
    results.push_back(complete(model, row.ids, own, at::kCPU));
  }
  return results;
}

void check_same(const Generation& found, const Generation& expected) {
  CHECK(found.token_ids == expected.token_ids);
  CHECK(found.finish_reason == expected.finish_reason);
  REQUIRE(found.logprobs.size() == expected.logprobs.size());
  for (size_t i = 0; i < found.logprobs.size(); ++i) CHECK(found.logprobs[i] == Approx(expected.logprobs[i]).margin(1e-5));
  CHECK(found.score == Approx(expected.score).margin(1e-4));
  CHECK(found.beam_score == Approx(expected.beam_score).margin(1e-5));
  REQUIRE(found.others.size() == expected.others.size());
  for (size_t i = 0; i < found.others.size(); ++i) check_same(found.others[i], expected.others[i]);
}

/// In batches of every kind as one by one. Rows end after different numbers of tokens.
void check_batches(nn::CausalLMImpl& model, const GenerateOptions& options) {
  const auto rows = prompts();
  const auto expected = one_by_one(model, rows, options);
  const auto [shortest, longest] = std::ranges::minmax(expected, {}, [](const Generation& one) { return one.token_ids.size(); });
  CHECK(shortest.token_ids.size() < longest.token_ids.size());
  for (const int64_t sequences : {1, 2, 4, 64}) {
    INFO(sequences << " sequences");
    const auto found = complete_all(model, rows, options, {.max_sequences = sequences}, at::kCPU);
    REQUIRE(found.size() == rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      INFO("row " << i);
      check_same(found[i], expected[i]);
    }
  }
}

/// Weights of an adapter that are not those it begins with.
template <class Options>
void adapt(nn::CausalLMImpl& model, const Options& options) {
  auto adapters = inject(model, options);
  at::manual_seed(62);
  const at::NoGradGuard no_grad;
  for (const auto& [name, factor] : adapters.named_parameters()) factor.normal_(0, 0.3);
}

const std::vector<int64_t> kEnds{7, 19, 33};

/// An end token that some rows meet and others do not.
std::vector<int64_t> end_of_some(nn::CausalLMImpl& model, int64_t max_new_tokens) {
  const auto free_run = complete_all(model, prompts(), options_with(max_new_tokens), {}, at::kCPU);
  for (int64_t id = 0; id < model.vocab_size(); ++id) {
    const auto rows = std::ranges::count_if(
        free_run, [&](const Generation& one) { return std::ranges::find(one.token_ids, id) != one.token_ids.end(); });
    if (rows >= 3 && rows <= 8) return {id};
  }
  FAIL("no such token");
  return {};
}

}  // namespace

TEST_CASE("batches decode what single rows do", "[generate]") {
  SeenLlama model;
  check_batches(model, options_with(24, kEnds));
}

TEST_CASE("batches draw what single rows draw", "[generate]") {
  SeenLlama model;
  GenerateOptions options = options_with(20, {7});
  options.sampling = {.temperature = 0.9, .top_k = 20, .top_p = 0.95};
  options.seed = 5;
  check_batches(model, options);
}

TEST_CASE("what is drawn depends on seed and row number, not on the company", "[generate]") {
  SeenLlama model;
  GenerateOptions options = options_with(12);
  options.sampling.temperature = 2;
  const auto rows = prompts();
  const auto all = complete_all(model, rows, options, {}, at::kCPU);
  std::vector<PromptRow> few{rows[9], rows[2], rows[4]};
  const auto some = complete_all(model, few, options, {}, at::kCPU);
  check_same(some[0], all[9]);
  check_same(some[1], all[2]);
  check_same(some[2], all[4]);
  few[0].row = 1;
  CHECK(complete_all(model, few, options, {}, at::kCPU)[0].token_ids != all[9].token_ids);
  options.seed = 1;
  CHECK(complete_all(model, rows, options, {}, at::kCPU)[9].token_ids != all[9].token_ids);
}

TEST_CASE("batches search with beams as single rows do", "[generate]") {
  SeenLlama model;
  for (const auto stopping : {generate::EarlyStopping::kNo, generate::EarlyStopping::kYes, generate::EarlyStopping::kNever}) {
    GenerateOptions options = options_with(16, kEnds);
    options.beams = {.num_beams = 3, .length_penalty = 1.2, .early_stopping = stopping, .num_sequences = 2};
    check_batches(model, options);
  }
}

TEST_CASE("batches keep to the rules as single rows do", "[generate]") {
  SeenLlama model;
  GenerateOptions options = options_with(20, kEnds);
  options.repetition_penalty = 1.3;
  options.no_repeat_ngram_size = 2;
  options.min_new_tokens = 5;
  check_batches(model, options);
  const auto found = complete_all(model, prompts(), options, {}, at::kCPU);
  for (const Generation& one : found) CHECK(one.token_ids.size() >= 5);
}

TEST_CASE("batches decode with adapters as single rows do", "[generate]") {
  const auto check = [](const auto& adapter) {
    SeenLlama model;
    model.to(at::kDouble);  // wild adapters multiply rounding
    const auto plain = complete_all(model, prompts(), options_with(20), {}, at::kCPU);
    adapt(model, adapter);
    const auto adapted = complete_all(model, prompts(), options_with(20), {}, at::kCPU);
    CHECK_FALSE(std::ranges::equal(plain, adapted, {}, &Generation::token_ids, &Generation::token_ids));
    const auto ends = end_of_some(model, 20);
    check_batches(model, options_with(20, ends));
    GenerateOptions beams = options_with(20, ends);
    beams.beams = {.num_beams = 3, .length_penalty = -1};
    check_batches(model, beams);
  };
  SECTION("LoRA") { check(LoraOptions{.rank = 4, .alpha = 8, .dropout = 0.3}); }
  SECTION("prefix") { check(PrefixOptions{.num_virtual_tokens = 4}); }
  SECTION("prompt") { check(PromptOptions{.num_virtual_tokens = 5}); }
}

TEST_CASE("rows that end leave the batch", "[generate]") {
  SeenLlama model;
  const auto results = complete_all(model, prompts(), options_with(30, kEnds), {.max_sequences = 64}, at::kCPU);
  const auto& passes = model.passes;
  REQUIRE(passes.front() == std::vector<int64_t>{11, 20});
  for (size_t i = 1; i < passes.size(); ++i) {
    CHECK(passes[i][1] == 1);
    CHECK(passes[i][0] <= passes[i - 1][0]);
    const auto running = std::ranges::count_if(results, [&](const Generation& one) { return one.token_ids.size() > i; });
    // An eighth of the sequences may be ones that have ended.
    CHECK(passes[i][0] >= running);
    CHECK((passes[i][0] - running) * 8 < passes[i][0]);
  }
  const auto longest = std::ranges::max_element(results, {}, [](const Generation& one) { return one.token_ids.size(); });
  CHECK(passes.size() == longest->token_ids.size());
}

TEST_CASE("prompts of one length need no mask", "[generate]") {
  SeenLlama model;
  std::vector<PromptRow> rows;
  for (int64_t i = 0; i < 3; ++i) rows.push_back({.row = i, .ids = {i, 2, 3, 5 + i}});
  const auto found = complete_all(model, rows, options_with(8), {}, at::kCPU);
  CHECK(model.masks == 0);
  const auto expected = one_by_one(model, rows, options_with(8));
  for (size_t i = 0; i < rows.size(); ++i) check_same(found[i], expected[i]);
}

TEST_CASE("short rows go on to the model's end beside long ones", "[generate]") {
  for (const bool has_prefix : {false, true}) {
    SeenLlama model(Fields{{"max_position_embeddings", "32"}});
    if (has_prefix) adapt(model, PrefixOptions{.num_virtual_tokens = 4});
    const auto rows = prompts();
    const auto expected = one_by_one(model, rows, options_with(100));
    const auto found = complete_all(model, rows, options_with(100), {.max_sequences = 64}, at::kCPU);
    for (size_t i = 0; i < rows.size(); ++i) {
      INFO("row " << i);
      CHECK(found[i].token_ids.size() == (has_prefix ? 28 : 32) - rows[i].ids.size());
      check_same(found[i], expected[i]);
    }
  }
}

TEST_CASE("batches hold at most the sequences and tokens that they may", "[generate]") {
  SeenLlama model;
  const auto prefills = [&](const BatchingOptions& batching, int64_t beams = 1) {
    model.passes.clear();
    GenerateOptions options = options_with(4);
    options.beams.num_beams = beams;
    complete_all(model, prompts(), options, batching, at::kCPU);
    std::vector<std::vector<int64_t>> result;
    for (const auto& pass : model.passes) {
      if (result.empty() || pass[1] > 1) result.push_back(pass);
    }
    return result;
  };
  // Lengths are 20, 17, 17, 12, 9, 8, 5, 5, 3, 2 and 1, to which 4 tokens come.
  CHECK(prefills({.max_sequences = 5}) == std::vector<std::vector<int64_t>>{{5, 20}, {5, 8}});
  CHECK(prefills({.max_sequences = 64, .max_tokens = 50}) == std::vector<std::vector<int64_t>>{{2, 20}, {2, 17}, {3, 9}, {4, 5}});
  CHECK(prefills({.max_sequences = 64, .max_tokens = 1}).size() == 10);  // the one of a single token looks like a step
  CHECK(prefills({.max_sequences = 15}, 3) == std::vector<std::vector<int64_t>>{{5, 20}, {5, 8}});
}

TEST_CASE("results come as rows end, each once", "[generate]") {
  SeenLlama model;
  const auto rows = prompts();
  std::vector<int64_t> order;
  std::vector<Generation> seen(rows.size());
  const auto results = complete_all(model, rows, options_with(24, kEnds), {.max_sequences = 64}, at::kCPU,
                                    [&](int64_t index, const Generation& one) {
                                      order.push_back(index);
                                      seen[static_cast<size_t>(index)] = one;
                                    });
  for (size_t i = 0; i < rows.size(); ++i) check_same(seen[i], results[i]);
  CHECK(std::ranges::is_sorted(order, {}, [&](int64_t i) { return results[static_cast<size_t>(i)].token_ids.size(); }));
  std::ranges::sort(order);
  std::vector<int64_t> all(rows.size());
  std::iota(all.begin(), all.end(), 0);
  CHECK(order == all);
}

TEST_CASE("an error of whoever takes results ends generation and leaves the model as it was", "[generate]") {
  SeenLlama model;
  model.train();
  CHECK_THROWS_AS(complete_all(model, prompts(), options_with(3), {.max_sequences = 2}, at::kCPU,
                               [](int64_t, const Generation&) { throw IoError("[results] full"); }),
                  IoError);
  CHECK(model.is_training());
  CHECK(at::GradMode::is_enabled());
  CHECK(model.passes.size() == 3);  // the first batch's
}

TEST_CASE("broken weights are an error in batches too", "[generate]") {
  SeenLlama model;
  {
    const at::NoGradGuard no_grad;
    model.lm_head->weight.fill_(NAN);
  }
  GenerateOptions options = options_with(3);
  CHECK_THROWS_AS(complete_all(model, prompts(), options, {}, at::kCPU), NonFiniteError);
  options.beams.num_beams = 2;
  CHECK_THROWS_AS(complete_all(model, prompts(), options, {}, at::kCPU), NonFiniteError);
}

TEST_CASE("nothing to generate runs nothing", "[generate]") {
  SeenLlama model;
  CHECK(complete_all(model, {}, options_with(3), {}, at::kCPU).empty());
  int64_t delivered = 0;
  const auto none =
      complete_all(model, prompts(), options_with(0), {}, at::kCPU, [&](int64_t, const Generation&) { ++delivered; });
  CHECK(delivered == 11);
  for (const Generation& one : none) CHECK((one.token_ids.empty() && one.finish_reason == "length"));
  const std::vector<PromptRow> full{{.row = 0, .ids = std::vector<int64_t>(64, 1)}};
  CHECK(complete_all(model, full, options_with(3), {}, at::kCPU)[0].token_ids.empty());
  CHECK(model.passes.empty());
}

TEST_CASE("a row that the model cannot take is named before anything runs", "[generate]") {
  SeenLlama model;
  const auto refused = [&](const std::vector<int64_t>& ids) {
    auto rows = prompts();
    rows.push_back({.row = 4711, .ids = ids});
    return message_of<DataError>([&] { complete_all(model, rows, options_with(3), {}, at::kCPU); });
  };
  CHECK(refused({}).find("row 4711") != std::string::npos);
  CHECK(refused({1, 40}).find("row 4711") != std::string::npos);
  CHECK(refused(std::vector<int64_t>(65, 1)).find("row 4711") != std::string::npos);
  adapt(model, PrefixOptions{.num_virtual_tokens = 4});
  const std::string message = refused(std::vector<int64_t>(61, 1));
  CHECK(message.find("row 4711") != std::string::npos);
  CHECK(message.find("at most 60") != std::string::npos);
  CHECK(model.passes.empty());
}

TEST_CASE("options of batches, beams and rules are checked before anything runs", "[generate]") {
  SeenLlama model;
  const auto refused = [&](auto change) {
    GenerateOptions options = options_with(3);
    BatchingOptions batching;
    change(options, batching);
    return message_of<ConfigError>([&] { complete_all(model, prompts(), options, batching, at::kCPU); });
  };
  using Options = GenerateOptions;
  CHECK(refused([](Options&, auto& batching) { batching.max_sequences = 0; }).starts_with("[max_sequences]"));
  CHECK(refused([](Options&, auto& batching) { batching.max_tokens = 0; }).starts_with("[max_tokens]"));
  CHECK(refused([](Options& o, auto&) { o.beams.num_beams = 0; }).starts_with("[num_beams]"));
  CHECK(refused([](Options& o, auto&) { o.beams.num_beams = 41; }).starts_with("[num_beams]"));
  CHECK(refused([](Options& o, auto&) { o.beams.num_sequences = 2; }).starts_with("[num_sequences]"));
  CHECK(refused([](Options& o, auto&) { o.beams.length_penalty = NAN; }).starts_with("[length_penalty]"));
  CHECK(refused([](Options& o, auto&) { o.beams.num_beams = 2, o.sampling.temperature = 1; }).starts_with("[temperature]"));
  CHECK(refused([](Options& o, auto&) { o.repetition_penalty = 0; }).starts_with("[repetition_penalty]"));
  CHECK(refused([](Options& o, auto&) { o.repetition_penalty = INFINITY; }).starts_with("[repetition_penalty]"));
  CHECK(refused([](Options& o, auto&) { o.no_repeat_ngram_size = -1; }).starts_with("[no_repeat_ngram_size]"));
  CHECK(refused([](Options& o, auto&) { o.min_new_tokens = -1; }).starts_with("[min_new_tokens]"));
  CHECK(model.passes.empty());
}

TEST_CASE("rules that forbid every token are an error", "[generate]") {
  SeenLlama model;
  GenerateOptions options = options_with(60);
  options.no_repeat_ngram_size = 1;  // of 40 tokens
  for (const int64_t beams : {1, 3}) {
    options.beams.num_beams = beams;
    const auto message = message_of<ConfigError>([&] { complete(model, {1, 2}, options, at::kCPU); });
    CHECK(message.find("no_repeat_ngram_size") != std::string::npos);
  }
}

TEST_CASE("a length penalty without measure is an error, not a crash", "[generate]") {
  SeenLlama model;
  GenerateOptions options = options_with(12);
  options.beams = {.num_beams = 2, .length_penalty = -1000};
  CHECK(message_of<ConfigError>([&] { complete(model, {1, 2}, options, at::kCPU); }).starts_with("[length_penalty]"));
}
