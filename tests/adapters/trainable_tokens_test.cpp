#include "lora/adapters/trainable_tokens.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include "adapters/fake_llama.h"
#include "lora/adapters/adapter_io.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/adapters/token_start.h"
#include "lora/core/error.h"
#include "support.h"

using namespace lora;
using Catch::Matchers::Contains;

namespace {

at::Tensor table_of(int64_t rows, int64_t width) { return at::arange(rows * width, at::kFloat).view({rows, width}); }

}  // namespace

TEST_CASE("rows stand in the place of the table's", "[tokens]") {
  nn::Embedding embedding(5, 2);
  {
    const torch::NoGradGuard no_grad;
    embedding->weight.copy_(table_of(5, 2));
  }
  const auto tokens = std::make_shared<TrainableTokens>(embedding->weight, std::vector<int64_t>{3, 1});
  embedding->attach("a", tokens);
  embedding->slot.set_active({"a"});
  const at::Tensor ids = at::tensor({0, 1, 3, 3}, at::kLong).view({2, 2});
  CHECK(at::equal(embedding->forward(ids), at::embedding(embedding->weight, ids)));
  {
    const torch::NoGradGuard no_grad;
    tokens->trainable_tokens_delta.copy_(at::tensor({-1., -2., -3., -4.}, at::kFloat).view({2, 2}));
  }
  const at::Tensor y = embedding->forward(ids);
  CHECK(at::equal(y, at::tensor({0., 1., -3., -4., -1., -2., -1., -2.}, at::kFloat).view({2, 2, 2})));
  y.sum().backward();
  CHECK(at::equal(tokens->trainable_tokens_delta.grad(), at::tensor({2., 2., 1., 1.}, at::kFloat).view({2, 2})));
  const at::Tensor before = embedding->weight.detach().clone();
  CHECK(at::equal(before + tokens->weight_delta(), tokens->merged(before, before)));
}

TEST_CASE("a head's outputs for the tokens are those of the rows, and the base's rows get no gradient", "[tokens]") {
  nn::Linear head(3, 4);
  const auto tokens = std::make_shared<TrainableTokens>(head->weight, std::vector<int64_t>{2});
  head->attach("a", tokens);
  head->slot.set_active({"a"});
  const at::Tensor row = at::tensor({1., 2., 3.}, at::kFloat);
  {
    const torch::NoGradGuard no_grad;
    tokens->trainable_tokens_delta.copy_(row.unsqueeze(0));
  }
  const at::Tensor x = at::randn({2, 3}).requires_grad_(true);
  at::Tensor replaced = head->weight.detach().clone();
  replaced.select(0, 2).copy_(row);
  const at::Tensor y = head->forward(x), expected = at::linear(x, replaced);
  CHECK(at::allclose(y, expected, 1e-6, 1e-6));
  const at::Tensor dy = at::randn({2, 4});
  expected.backward(dy);
  const at::Tensor dx = x.grad().clone();
  x.mutable_grad() = at::Tensor();
  y.backward(dy);
  CHECK(at::allclose(x.grad(), dx, 1e-5, 1e-6));
  CHECK(at::allclose(tokens->trainable_tokens_delta.grad(), dy.select(1, 2).unsqueeze(0).mm(x.detach()), 1e-5, 1e-6));
  CHECK(head->weight.grad().select(0, 2).abs().max().item<double>() == 0);
}

TEST_CASE("ids are checked, and no ids are no change", "[tokens]") {
  const at::Tensor table = table_of(4, 2);
  CHECK_THROWS_WITH(TrainableTokens(table, {4}), Contains("[0, 4)") && Contains("found 4"));
  CHECK_THROWS_AS(TrainableTokens(table, {-1}), ConfigError);
  CHECK_THROWS_WITH(TrainableTokens(table, {1, 2, 1}), Contains("1 again"));
  TrainableTokens none(table, {});
  const at::Tensor y = at::randn({1, 2});
  CHECK(at::equal(none.apply_to_rows(at::zeros({1}, at::kLong), y, table), y));
}

TEST_CASE("a table is not changed in two ways", "[tokens]") {
  auto model = std::make_shared<testing::FakeLlama>();
  const std::vector<int64_t> ids = {1, 2};
  LoraOptions options{.rank = 2, .targets = std::vector<std::string>{"embed_tokens", "q_proj"}, .token_indices = ids};
  CHECK_THROWS_WITH(inject(*model, options), Contains("target_modules as well"));
  options = {.rank = 2, .modules_to_save = {"embed_tokens"}, .token_indices = ids};
  CHECK_THROWS_WITH(inject(*model, options), Contains("modules_to_save as well"));
  options = {.rank = 2,
             .token_indices = TokenIndices(std::vector<std::pair<std::string, std::vector<int64_t>>>{{"embedings", ids}})};
  CHECK_THROWS_WITH(inject(*model, options), Contains("embed_tokens"));
  CHECK(adapters_of(*model).empty());

  inject(*model, LoraOptions{.rank = 2, .token_indices = ids}, "a");
  inject(*model, TrainableTokensOptions{.token_indices = {2, 3}}, "b");
  inject(*model, TrainableTokensOptions{.token_indices = {3}}, "c");
  CHECK_THROWS_WITH(set_active_adapters(*model, {"a", "b"}), Contains("same rows"));
  set_active_adapters(*model, {"a", "c"});
  CHECK(active_adapters(*model) == std::vector<std::string>{"a", "c"});
}

TEST_CASE("rows start as those of a saved adapter", "[tokens]") {
  auto model = std::make_shared<testing::FakeLlama>();
  const auto first = inject(*model, TrainableTokensOptions{.token_indices = {4, 1}});
  {
    const torch::NoGradGuard no_grad;
    first.parameters().front().fill_(0.5);
  }
  const auto files = adapter_to_files(first);
  auto other = std::make_shared<testing::FakeLlama>();
  const auto next = inject(*other, LoraOptions{.rank = 2, .token_indices = std::vector<int64_t>{4, 1}});
  start_token_rows(next, files);
  for (const auto& [name, tensor] : next.named_parameters()) {
    if (name.ends_with("trainable_tokens_delta")) CHECK(tensor.eq(0.5).all().item<bool>());
  }
  auto third = std::make_shared<testing::FakeLlama>();
  const auto differs = inject(*third, LoraOptions{.rank = 2, .token_indices = std::vector<int64_t>{1, 4}});
  CHECK_THROWS_WITH(start_token_rows(differs, files), Contains("same tokens"));
}
