#include "lora/nn/recompute.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include "catch.h"
#include "gradcheck.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/models/llama.h"
#include "lora/nn/loss.h"
#include "lora/ops/autocast.h"

using namespace lora;

namespace {

std::shared_ptr<llama::LlamaForCausalLMImpl> small_model() {
  const auto config = llama::fresh_llama_config(std::nullopt, {{"vocab_size", "50"},
                                                               {"hidden_size", "32"},
                                                               {"intermediate_size", "48"},
                                                               {"num_hidden_layers", "3"},
                                                               {"num_attention_heads", "4"},
                                                               {"num_key_value_heads", "2"},
                                                               {"max_position_embeddings", "64"}});
  return std::make_shared<llama::LlamaForCausalLMImpl>(config);
}

/// The loss and the gradient of everything that trains.
std::vector<at::Tensor> run(llama::LlamaForCausalLMImpl& model, nn::Recompute recompute, at::ScalarType amp_dtype,
                            int64_t length = 20) {
  model.recompute = recompute;
  at::manual_seed(5);  // dropout draws the same numbers in every run
  Batch batch;
  batch.input_ids_BS = at::arange(2 * length, at::kLong).remainder(50).view({2, length});
  batch.labels_BS = batch.input_ids_BS;
  at::Tensor loss;
  {
    const AutocastGuard autocast(at::kCPU, amp_dtype);
    loss = nn::causal_lm_loss_sum(model, batch);
  }
  loss.backward();
  std::vector<at::Tensor> results = {loss.detach()};
  for (at::Tensor& parameter : model.parameters()) {
    if (!parameter.requires_grad()) continue;
    REQUIRE(parameter.grad().defined());
    results.push_back(parameter.grad().clone());
    parameter.mutable_grad() = at::Tensor();
  }
  return results;
}

void check_same(llama::LlamaForCausalLMImpl& model, at::ScalarType amp_dtype) {
  const auto expected = run(model, nn::Recompute::kNone, amp_dtype);
  for (const auto recompute : {nn::Recompute::kSelective, nn::Recompute::kFull}) {
    const auto found = run(model, recompute, amp_dtype);
    REQUIRE(found.size() == expected.size());
    for (size_t i = 0; i < found.size(); ++i) CHECK(at::equal(found[i], expected[i]));
  }
}

}  // namespace

TEST_CASE("recomputing changes no bit of losses and gradients", "[llama]") {
  at::manual_seed(1);
  const auto amp_dtype = GENERATE(at::kFloat, at::kBFloat16);
  auto model = small_model();
  model->train();
  SECTION("LoRA with dropout, in every layer and in the last alone") {
    LoraOptions options;
    options.targets = std::vector<std::string>{"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
    options.init = "false";
    options.dropout = 0.3;
    if (GENERATE(false, true)) options.layers_to_transform = {{2}};
    const auto adapters = inject(*model, options);
    freeze_base(*model, adapters);
    check_same(*model, amp_dtype);
  }
  SECTION("full fine-tuning") { check_same(*model, amp_dtype); }
}

TEST_CASE("the first step of a model whose products are packed is the same recomputed", "[llama]") {
  std::vector<std::vector<at::Tensor>> results;
  for (const auto recompute : {nn::Recompute::kNone, nn::Recompute::kSelective, nn::Recompute::kFull}) {
    at::manual_seed(2);
    // Wide enough that packed and plain products differ in their last bits.
    const auto config = llama::fresh_llama_config(std::nullopt, {{"vocab_size", "50"},
                                                                 {"hidden_size", "512"},
                                                                 {"intermediate_size", "512"},
                                                                 {"num_hidden_layers", "2"},
                                                                 {"num_attention_heads", "8"},
                                                                 {"max_position_embeddings", "64"},
                                                                 {"initializer_range", "0.05"}});
    auto model = std::make_shared<llama::LlamaForCausalLMImpl>(config, nn::ParameterOptions{at::kBFloat16, at::kCPU, true});
    LoraOptions options{.rank = 2, .alpha = 4, .init = "false"};
    options.targets = std::vector<std::string>{"q_proj"};
    freeze_base(*model, inject(*model, options));
    results.push_back(run(*model, recompute, at::kFloat, /*length=*/48));
  }
  for (const auto& found : results) {
    REQUIRE(found.size() == results.front().size());
    for (size_t i = 0; i < found.size(); ++i) CHECK(at::equal(found[i], results.front()[i]));
  }
}

TEST_CASE("recomputing keeps only its inputs", "[llama]") {
  int64_t runs = 0;
  const auto x = at::randn({4, 4}).requires_grad_(), weight = at::randn({4, 4}).requires_grad_();
  const auto square = [&](const std::vector<at::Tensor>& in) {
    ++runs;
    return std::vector<at::Tensor>{in[0].mm(weight).square()};
  };
  const auto y = nn::recomputed(square, {x})[0];
  CHECK(runs == 1);
  y.sum().backward();
  CHECK(runs == 2);
  CHECK(at::allclose(x.grad(), (2 * x.mm(weight)).mm(weight.t())));
  CHECK(at::allclose(weight.grad(), x.t().mm(2 * x.mm(weight))));
  const torch::NoGradGuard no_grad;
  nn::recomputed(square, {x});
  CHECK(runs == 3);
}

TEST_CASE("recomputing: backward equals finite differences", "[llama]") {
  at::manual_seed(6);
  const auto function = [](const std::vector<at::Tensor>& in) {
    return std::vector<at::Tensor>{in[0].mm(in[1]).sin(), in[1].square()};
  };
  check_gradients(
      [&](const auto& in) {
        const auto results = nn::recomputed(function, in);
        return at::cat({results[0].reshape(-1), results[1].reshape(-1)});
      },
      {random_double({2, 3}), random_double({3, 4})});
}

TEST_CASE("parameters learn though no input asks for a gradient", "[llama]") {
  const auto x = at::randn({2, 3}), weight = at::randn({3, 2}).requires_grad_();
  nn::recomputed([&](const auto& in) { return std::vector<at::Tensor>{in[0].mm(weight)}; }, {x})[0].sum().backward();
  CHECK(at::allclose(weight.grad(), x.t().mm(at::ones({2, 2}))));
  CHECK_FALSE(x.grad().defined());
}
