// LoRA on some projections of a layer that computes several.
#include "lora/adapters/fused_rows.h"

#include <ATen/ATen.h>
#include <torch/optim/adamw.h>
#include <torch/utils.h>

#include "catch.h"
#include "glm_model.h"
#include "lora/adapters/adapter_io.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "lora/core/file.h"
#include "lora/models/llama.h"
#include "support.h"

using namespace lora;
using lora::testing::glm_batch;
using lora::testing::glm_ids;
using lora::testing::GlmImpl;
using lora::testing::message_of;
using lora::testing::ScratchFolder;
using lora::testing::tiny_glm;

namespace {

using Parts = std::vector<std::string>;

LoraOptions on_fused(const std::string& init = "true") {
  return {.rank = 4, .alpha = 8, .init = init, .targets = std::vector<std::string>{"query_key_value"}};
}

std::shared_ptr<llama::LlamaForCausalLMImpl> tiny_llama(bool fused) {
  auto config = llama::fresh_llama_config(std::nullopt, {{"vocab_size", "32"},
                                                         {"hidden_size", "16"},
                                                         {"intermediate_size", "24"},
                                                         {"num_hidden_layers", "2"},
                                                         {"num_attention_heads", "4"},
                                                         {"max_position_embeddings", "16"}});
  config.fused_qkv = fused;
  seed_generators(5);
  return std::make_shared<llama::LlamaForCausalLMImpl>(config);
}

at::Tensor factor_b(const AdapterSet& set, size_t slot = 0) {
  return dynamic_cast<LoraLinear&>(*set.slots().at(slot).adapter).lora_B;
}

/// Part 0, 1 or 2 of a factor of ChatGLM's, whose heads hold q, k and v of 8 numbers each.
at::Tensor glm_part(const at::Tensor& b_OR, int64_t part) { return b_OR.detach().view({4, 3, 8, -1}).select(1, part); }
/// Of Baichuan's.
at::Tensor baichuan_part(const at::Tensor& b_OR, int64_t part) { return b_OR.detach().chunk(3)[static_cast<size_t>(part)]; }

bool is_zero(const at::Tensor& x) { return at::eq(x, 0).all().item<bool>(); }
bool has_zero_row(const at::Tensor& x) { return at::eq(x, 0).all(-1).any().item<bool>(); }

/// Steps of torch's AdamW with weight decay on all that the adapter trains. before, after: around each update.
template <class Model>
void train(
    Model& model, const AdapterSet& set, const Batch& batch, const std::function<void()>& before = [] {},
    const std::function<void()>& after = [] {}) {
  freeze_base(model, set);
  torch::optim::AdamW optimizer(set.parameters(), torch::optim::AdamWOptions(0.05).weight_decay(0.1));
  for (int i = 0; i < 5; ++i) {
    optimizer.zero_grad();
    const auto logits = model.forward(batch);
    at::cross_entropy_loss(logits[0].slice(0, 0, -1), batch.input_ids_BS[0].slice(0, 1)).backward();
    before();
    optimizer.step();
    const torch::NoGradGuard no_grad;
    after();
  }
}

Batch rows_of_glm() {
  seed_generators(3);
  return glm_batch(glm_ids(5, 6));
}

}  // namespace

TEST_CASE("fused rows: ChatGLM's k rows stay at zero bit for bit, q and v train", "[fused_rows]") {
  const auto model = tiny_glm();
  const auto set = inject(*model, on_fused());
  train_fused_rows(*model, set, Parts{"q", "v"});
  train(*model, set, rows_of_glm());
  for (size_t slot = 0; slot < 2; ++slot) {
    CHECK(is_zero(glm_part(factor_b(set, slot), 1)));
    CHECK_FALSE(has_zero_row(glm_part(factor_b(set, slot), 0)));
    CHECK_FALSE(has_zero_row(glm_part(factor_b(set, slot), 2)));
  }
}

TEST_CASE("fused rows: Baichuan's stand one part after another", "[fused_rows]") {
  const auto model = tiny_llama(true);
  auto options = on_fused("gaussian");
  options.targets = model->default_targets();
  const auto set = inject(*model, options);
  train_fused_rows(*model, set, Parts{"v"});
  Batch batch;
  batch.input_ids_BS = at::tensor({1, 5, 9, 2, 7}, at::kLong).unsqueeze(0);
  train(*model, set, batch);
  CHECK(is_zero(baichuan_part(factor_b(set), 0)));
  CHECK(is_zero(baichuan_part(factor_b(set), 1)));
  CHECK_FALSE(has_zero_row(baichuan_part(factor_b(set), 2)));
}

TEST_CASE("fused rows: training is that of a LoRA whose k rows are put to zero by hand", "[fused_rows]") {
  const auto batch = rows_of_glm();
  const auto restricted = tiny_glm(), by_hand = tiny_glm();
  seed_generators(8);
  const auto set = inject(*restricted, on_fused());
  train_fused_rows(*restricted, set, Parts{"v", "q"});
  seed_generators(8);
  const auto plain = inject(*by_hand, on_fused());
  train(*restricted, set, batch);
  const auto for_each_k = [&](const auto& change) {
    for (size_t slot = 0; slot < 2; ++slot) change(factor_b(plain, slot));
  };
  train(
      *by_hand, plain, batch, [&] { for_each_k([](const at::Tensor& b) { glm_part(b.grad(), 1).zero_(); }); },
      [&] { for_each_k([](const at::Tensor& b) { glm_part(b, 1).zero_(); }); });
  const torch::NoGradGuard no_grad;
  CHECK(at::equal(restricted->forward(batch), by_hand->forward(batch)));
  for (const auto& [name, value] : set.named_parameters()) CHECK(at::equal(value, by_hand->named_parameters()[name]));
}

TEST_CASE("fused rows: the file is a plain LoRA, from which training goes on with the same rows", "[fused_rows]") {
  const ScratchFolder folder;
  const auto batch = rows_of_glm();
  const auto model = tiny_glm(), again = tiny_glm(), other = tiny_glm();
  const auto set = inject(*model, on_fused());
  train_fused_rows(*model, set, Parts{"q", "v"});
  train(*model, set, batch);
  save_adapter(set, folder.path());
  CHECK(read_file(folder / "adapter_config.json").find("fused") == std::string::npos);
  const auto loaded = load_adapter(*again, folder.path());
  {
    const torch::NoGradGuard no_grad;
    CHECK(at::equal(again->forward(batch), model->forward(batch)));
  }
  train_fused_rows(*again, loaded, Parts{"q", "v"});
  train(*again, loaded, batch);
  CHECK(is_zero(glm_part(factor_b(loaded), 1)));
  CHECK_FALSE(at::equal(factor_b(loaded), factor_b(set)));
  const auto whole = load_adapter(*other, folder.path());
  CHECK_THROWS_AS(train_fused_rows(*other, whole, Parts{"v"}), ConfigError);  // rows of q are not zero
}

TEST_CASE("fused rows: what is held does not count as trained", "[fused_rows]") {
  const auto model = tiny_glm();
  const auto set = inject(*model, on_fused());
  const int64_t whole = freeze_base(*model, set).trainable;
  CHECK(whole == 2 * 4 * (32 + 96));  // layers * rank * (in + out)
  train_fused_rows(*model, set, Parts{"q", "v"});
  CHECK(num_held_numbers(set) == 2 * 4 * 32);
  CHECK(freeze_base(*model, set).trainable == 2 * 4 * (32 + 64));
  CHECK(freeze_base(*model, set, {.freeze = {"lora_B"}}).trainable == 2 * 4 * 32);
}

TEST_CASE("fused rows: all of them are nothing held, and other targets train whole", "[fused_rows]") {
  const auto model = tiny_glm();
  auto options = on_fused();
  options.targets = std::vector<std::string>{"query_key_value", "dense"};
  const auto set = inject(*model, options);
  train_fused_rows(*model, set, Parts{"k", "q", "v"});
  CHECK(num_held_numbers(set) == 0);
  const auto second = tiny_glm();
  const auto part = inject(*second, options);
  train_fused_rows(*second, part, Parts{"q"});
  CHECK(num_held_numbers(part) == 2 * 4 * 64);
}

TEST_CASE("fused rows: what they cannot be is refused", "[fused_rows]") {
  const auto refused = [](GlmImpl& model, const AdapterSet& set, const Parts& parts) {
    return message_of<ConfigError>([&] { train_fused_rows(model, set, parts); });
  };
  const auto contains = [](const std::string& text) { return Catch::Matchers::Contains(text); };
  const auto with = [&](const MethodOptions& options, const Parts& parts) {
    const auto model = tiny_glm();
    return refused(*model, inject_method(*model, options), parts);
  };
  CHECK_THAT(with(on_fused(), {"x"}), contains("must be some of k, q, v; found \"x\""));
  CHECK_THAT(with(on_fused(), {}), contains("found none named"));
  CHECK_THAT(with(on_fused("false"), {"q"}), contains("must be zero"));
  CHECK_THAT(with(on_fused("pissa"), {"q"}), contains("must be zero"));
  LoraOptions dora = on_fused(), biased = on_fused();
  dora.dora = true;
  biased.bias = "lora_only";
  CHECK_THAT(with(dora, {"q"}), contains("DoRA"));
  CHECK_THAT(with(biased, {"q"}), contains("biases"));
  AdaLoraOptions adalora;
  adalora.targets = std::vector<std::string>{"query_key_value"};
  adalora.total_steps = 1000;
  CHECK_THAT(with(adalora, {"q"}), contains("found adalora"));

  const auto model = tiny_glm();
  const auto set = inject(*model, on_fused());
  train_fused_rows(*model, set, {"q"});
  CHECK_THAT(refused(*model, set, {"q", "k"}), contains("chosen once"));
  const auto llama = tiny_llama(false);
  const auto apart = inject(*llama, LoraOptions{.rank = 4});
  CHECK_THAT(message_of<ConfigError>([&] { train_fused_rows(*llama, apart, {"q"}); }), contains("found none that does"));
}
