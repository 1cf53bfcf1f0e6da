// Decoding with guesses against decoding one token a pass: the same to the last bit.
#include <ATen/ATen.h>

#include "catch.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "lora/generate/generate.h"
#include "lora/models/llama.h"
#include "lora/nn/loss.h"
#include "lora/ops/autocast.h"
#include "nn/eval_mode.h"
#include "support.h"
#include "tiny_model.h"

using lora::generate::complete;
using lora::generate::GenerateOptions;
using lora::generate::Generation;
using lora::testing::message_of;
using lora::testing::TinyModelImpl;
using namespace lora;

namespace {

using Fields = std::vector<std::pair<std::string, std::string>>;

/// A Llama that counts its passes. Sizes are odd enough to leave rests of vectors.
class CountedLlama : public llama::LlamaForCausalLMImpl {
 public:
  explicit CountedLlama(const Fields& fields = {}) : LlamaForCausalLMImpl(config_of(fields)) {
    const at::NoGradGuard no_grad;
    for (const auto& entry : named_parameters()) {
      if (entry.key().ends_with(".bias")) entry.value().normal_(0, 0.5);
    }
  }

  at::Tensor hidden(const Batch& batch, nn::KvCache* cache) override {
    ++passes;
    rows += batch.input_ids_BS.size(1);
    return LlamaForCausalLMImpl::hidden(batch, cache);
  }

  int64_t passes = 0, rows = 0;

 private:
  static llama::LlamaConfig config_of(const Fields& fields) {
    at::manual_seed(51);
    Fields all = {{"vocab_size", "40"},
                  {"hidden_size", "72"},
                  {"intermediate_size", "100"},
                  {"num_hidden_layers", "3"},
                  {"num_attention_heads", "6"},
                  {"num_key_value_heads", "2"},
                  {"max_position_embeddings", "200"},
                  {"initializer_range", "0.2"}};
    all.insert(all.end(), fields.begin(), fields.end());
    return llama::fresh_llama_config(std::nullopt, all);
  }
};

/// Token t is followed by t + 1, and 9 by 0.
class Successor : public nn::CausalLMImpl {
 public:
  Successor() {
    register_module("tokens", tokens_);
    register_module("head", head_);
    const at::NoGradGuard no_grad;
    tokens_->weight.copy_(at::eye(10));
    head_->weight.copy_(at::eye(10).roll(1, 0));
  }
  at::Tensor hidden(const Batch& batch, nn::KvCache* cache) override {
    sizes.push_back(batch.input_ids_BS.size(1));
    cache->advance(sizes.back());
    return tokens_->forward(batch.input_ids_BS);
  }
  nn::Linear head() override { return head_; }
  int64_t vocab_size() const override { return 10; }
  int64_t num_layers() const override { return 0; }
  int64_t max_positions() const override { return 100; }
  int64_t independent_rows() override { return 4; }

  std::vector<int64_t> sizes;  ///< of each pass

 private:
  nn::Embedding tokens_{10, 10};
  nn::Linear head_{10, 10};
};

/// LoRA whose B is not zero.
void adapt(nn::CausalLMImpl& model, const LoraOptions& options, const std::string& name = "default") {
  auto adapters = inject(model, options, name);
  at::manual_seed(52);
  const at::NoGradGuard no_grad;
  for (const auto& [name, factor] : adapters.named_parameters()) factor.normal_(0, 0.1);
}

std::vector<int64_t> prompt() {
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < 24; ++i) ids.push_back(i * i % 7 + (i > 12 ? 3 : 0));
  return ids;
}

GenerateOptions options_with(int64_t max_new_tokens, int64_t guesses) {
  GenerateOptions options;
  options.max_new_tokens = max_new_tokens;
  options.prompt_lookup_num_tokens = guesses;
  return options;
}

struct Counted {
  Generation result;
  int64_t passes, rows;
};

template <class Model>
Counted counted(Model& model, const GenerateOptions& options) {
  model.passes = model.rows = 0;
  const Generation result = complete(model, prompt(), options, at::kCPU);
  return {result, model.passes, model.rows};
}

void check_same(const Generation& found, const Generation& expected) {
  CHECK(found.token_ids == expected.token_ids);
  CHECK(found.logprobs == expected.logprobs);
  CHECK(found.score == expected.score);
  CHECK(found.finish_reason == expected.finish_reason);
}

/// The same result in fewer passes, some of whose guesses were wrong.
void check_exact(CountedLlama& model) {
  constexpr int64_t kTokens = 150;
  {
    const at::NoGradGuard no_grad;
    const nn::EvalMode no_dropout(model);
    CHECK(model.independent_rows() == 4);
  }
  const Counted plain = counted(model, options_with(kTokens, 0));
  CHECK(plain.passes == kTokens);
  for (const int64_t guesses : {1, 2, 3, 9}) {
    INFO(guesses << " guesses");
    const Counted guessed = counted(model, options_with(kTokens, guesses));
    check_same(guessed.result, plain.result);
    CHECK(guessed.passes < plain.passes);
    CHECK(guessed.rows > plain.rows);
    CHECK(guessed.rows <= plain.rows + guessed.passes * std::min<int64_t>(guesses, 3));
  }
}

}  // namespace

TEST_CASE("guesses change nothing but the number of passes", "[generate]") {
  for (const auto type : {at::kBFloat16, at::kFloat, at::kDouble}) {
    for (const Fields& fields : {Fields{}, Fields{{"attention_bias", "true"}, {"mlp_bias", "true"}},
                                 Fields{{"tie_word_embeddings", "true"}, {"num_key_value_heads", "6"}}}) {
      INFO(c10::toString(type) << (fields.empty() ? "" : ", " + fields.front().first));
      CountedLlama model(fields);
      model.to(type);
      check_exact(model);
    }
  }
}

TEST_CASE("guesses change nothing with adapters", "[generate]") {
  for (const auto type : {at::kBFloat16, at::kFloat}) {
    for (const bool everywhere : {false, true}) {
      INFO(c10::toString(type) << (everywhere ? ", all layers" : ""));
      CountedLlama model(Fields{{"attention_bias", "true"}});
      model.to(type);
      LoraOptions options{.rank = everywhere ? 16 : 6, .alpha = 10, .dropout = 0.3};
      if (everywhere) options.targets = std::string("all-linear");
      adapt(model, options);
      check_exact(model);
    }
  }
}

TEST_CASE("adapters count in the decoding of single tokens", "[generate]") {
  CountedLlama model;
  const auto before = complete(model, prompt(), options_with(20, 3), at::kCPU);
  adapt(model, {.rank = 6, .alpha = 10});
  const auto adapted = complete(model, prompt(), options_with(20, 3), at::kCPU);
  CHECK(adapted.token_ids != before.token_ids);
  // A pass over all tokens at once, which has other kernels.
  const at::NoGradGuard no_grad;
  auto ids = prompt();
  ids.insert(ids.end(), adapted.token_ids.begin(), adapted.token_ids.end());
  Batch batch;
  batch.input_ids_BS = at::tensor(ids, at::kLong).unsqueeze(0);
  const at::Tensor logprobs_SV = at::log_softmax(model.forward(batch), -1).squeeze(0);
  for (size_t i = 0; i < adapted.token_ids.size(); ++i) {
    const auto at = static_cast<int64_t>(prompt().size() + i) - 1;
    CHECK(logprobs_SV[at][adapted.token_ids[i]].item<double>() == Approx(adapted.logprobs[i]).margin(1e-4));
  }
}

TEST_CASE("guesses are made only where rows do not depend on each other", "[generate]") {
  const at::NoGradGuard no_grad;
  CountedLlama model;
  CHECK(model.independent_rows() == 4);
  for (const auto* name : {"joined", "fused_norm", "fused_rotary", "fused_swiglu", "fused_attention"}) {
    INFO(name);
    model.fast_paths.at(name) = false;
    CHECK(model.independent_rows() == 1);
    const Counted one_by_one = counted(model, options_with(9, 3));
    CHECK(one_by_one.passes == 9);
    model.fast_paths.at(name) = true;
  }
  {
    const AutocastGuard autocast(at::kCPU, at::kBFloat16);
    CHECK(model.independent_rows() == 1);
  }
  {
    const at::AutoGradMode gradients(true);
    CHECK(model.independent_rows() == 1);
  }
  model.lm_head->to(at::kDouble);  // as a head that is trained whole on a narrower base
  CHECK(model.independent_rows() == 1);
  model.lm_head->to(at::kFloat);
  CHECK(model.independent_rows() == 4);
  model.to(at::kHalf);
  CHECK(model.independent_rows() == 1);
  model.to(at::kFloat);
  adapt(model, {.rank = 2, .dropout = 0.5});
  model.train();
  CHECK(model.independent_rows() == 1);
  model.eval();
  CHECK(model.independent_rows() == 4);
  adapt(model, {.rank = 2, .targets = std::vector<std::string>{"embed_tokens"}}, "other");
  set_active_adapters(model, {"default", "other"});
  CHECK(model.independent_rows() == 1);
}

TEST_CASE("a model whose weights are packed alone decodes one token a pass", "[generate]") {
  if (!ops::PackedWeight::pays(at::kBFloat16)) {
    SUCCEED("nothing is packed on this processor");
    return;
  }
  for (const bool release : {true, false}) {
    CountedLlama model;
    model.to(at::kBFloat16);
    for (auto& parameter : model.parameters()) parameter.set_requires_grad(false);
    adapt(model, {.rank = 4});
    model.fast_paths.release_plain = release;
    Batch batch;
    batch.input_ids_BS = at::tensor(prompt(), at::kLong).unsqueeze(0);
    batch.labels_BS = batch.input_ids_BS;
    nn::causal_lm_loss_sum(model, batch).backward();
    CHECK(model.lm_head->weight_is_released() == release);
    const int64_t passes = counted(model, options_with(60, 3)).passes;
    CHECK((release ? passes == 60 : passes < 60));
    nn::restore_weights(model);
    check_exact(model);
  }
}

TEST_CASE("guesses are made at temperature 0 alone", "[generate]") {
  CountedLlama model;
  GenerateOptions options = options_with(60, 3);
  options.sampling.temperature = 0.7;
  const Counted sampled = counted(model, options);
  CHECK(sampled.passes == 60);
  options.prompt_lookup_num_tokens = 0;
  check_same(counted(model, options).result, sampled.result);
}

TEST_CASE("right guesses make several tokens a pass", "[generate]") {
  Successor model;
  // After the prompt comes 4, then 5, 6 and 9 are guessed, of which the last is wrong.
  const auto result = complete(model, {3, 4, 5, 6, 9, 1, 2, 3}, options_with(7, 3), at::kCPU);
  CHECK(result.token_ids == std::vector<int64_t>{4, 5, 6, 7, 8, 9, 0});
  CHECK(model.sizes == std::vector<int64_t>{8, 4, 1, 1, 1});
}

TEST_CASE("after wrong guesses come passes without one", "[generate]") {
  Successor model;
  GenerateOptions options = options_with(20, 3);
  options.stop_ids = {0};
  // Whatever two tokens are generated, 1 followed them in the prompt.
  const auto result = complete(model, {3, 4, 1, 4, 5, 1, 5, 6, 1, 6, 7, 1, 7, 8, 1, 8, 9, 1, 2, 3}, options, at::kCPU);
  CHECK(result.token_ids == std::vector<int64_t>{4, 5, 6, 7, 8, 9, 0});
  CHECK(model.sizes == std::vector<int64_t>{20, 4, 1, 4, 1, 1, 4});
}

TEST_CASE("an end token among right guesses ends generation there", "[generate]") {
  for (const int64_t end : {4, 5, 6, 7, 8}) {
    Successor model;
    GenerateOptions options = options_with(7, 3);
    options.stop_ids = {end};
    const auto result = complete(model, {3, 4, 5, 6, 7, 8, 1, 2, 3}, options, at::kCPU);
    CHECK(result.token_ids.back() == end);
    CHECK(result.token_ids.size() == static_cast<size_t>(end - 3));
    CHECK(result.logprobs.size() == result.token_ids.size());
    CHECK(result.score == Approx(result.logprobs[0] * static_cast<double>(end - 3)));
    CHECK(result.finish_reason == "stop");
  }
}

TEST_CASE("an end token gives the same with guesses as without", "[generate]") {
  CountedLlama model;
  const auto free_run = complete(model, prompt(), options_with(60, 0), at::kCPU).token_ids;
  for (const int64_t end : free_run) {
    GenerateOptions options = options_with(60, 0);
    options.stop_ids = {end};
    const Generation expected = complete(model, prompt(), options, at::kCPU);
    options.prompt_lookup_num_tokens = 3;
    const Generation found = complete(model, prompt(), options, at::kCPU);
    check_same(found, expected);
    CHECK(found.finish_reason == "stop");
  }
}

TEST_CASE("guesses keep to the limit and to the model's positions", "[generate]") {
  CountedLlama model(Fields{{"max_position_embeddings", "80"}});
  for (const int64_t limit : {1, 2, 3, 31, 32, 33, 34, 35, 55, 56, 57, 100}) {
    INFO(limit << " tokens");
    const Counted plain = counted(model, options_with(limit, 0));
    CHECK(static_cast<int64_t>(plain.result.token_ids.size()) == std::min<int64_t>(limit, 56));
    const Counted guessed = counted(model, options_with(limit, 3));
    check_same(guessed.result, plain.result);
  }
}

TEST_CASE("a model says itself how many rows it takes at once", "[generate]") {
  lora::testing::TinyShape shape;
  shape.positions = 60;
  TinyModelImpl model(shape);
  const auto longest = [&](int64_t rows_at_once) {
    model.rows_at_once = rows_at_once;
    model.forward_sizes.clear();
    const auto result = complete(model, {3, 1, 4, 3, 1, 4}, options_with(40, 9), at::kCPU);
    int64_t most = 0;
    for (size_t i = 1; i < model.forward_sizes.size(); ++i) most = std::max(most, model.forward_sizes[i][1]);
    return std::pair{most, result.token_ids};
  };
  const auto [one, expected] = longest(1);
  CHECK(one == 1);
  for (const int64_t rows : {2, 3, 6}) {
    const auto [most, found] = longest(rows);
    CHECK(most == rows);
    CHECK(found == expected);
  }
}

TEST_CASE("the number of guesses is checked", "[generate]") {
  CountedLlama model;
  CHECK(message_of<ConfigError>([&] { complete(model, {1}, options_with(1, -1), at::kCPU); }).find("prompt_lookup_num_tokens") !=
        std::string::npos);
  CHECK(model.passes == 0);
}
