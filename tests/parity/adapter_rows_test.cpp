// Adapters by row against PEFT's numbers for each adapter alone, and against our own for caches, types and fast paths.
#include "lora/adapters/adapter_rows.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include "lora/adapters/adapter_io.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "lora/io/safetensors.h"
#include "lora/models/llama.h"
#include "lora/nn/loss.h"
#include "support.h"

using namespace lora;

namespace {

using Names = std::vector<std::string>;

Path reference() { return testing::reference_folder() / "peft"; }

std::shared_ptr<llama::LlamaForCausalLMImpl> model_with_both(at::ScalarType dtype = at::kFloat) {
  auto model = llama::load(reference() / "base", {.device = at::kCPU, .dtype = dtype});
  load_adapter(*model, reference() / "multi_adapter/a", "a");
  load_adapter(*model, reference() / "multi_adapter/b", "b");
  model->eval();
  return model;
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  REQUIRE(a.sizes() == b.sizes());
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

Batch batch_of(const at::Tensor& ids) {
  Batch batch;
  batch.input_ids_BS = ids;
  return batch;
}

}  // namespace

TEST_CASE("adapters by row give PEFT's logits of each row's adapter", "[parity]") {
  const torch::NoGradGuard no_grad;
  const auto expected = io::load_safetensors(reference() / "multi_adapter/expected.safetensors");
  const auto fixture = io::load_safetensors(reference() / "base/batch.safetensors");
  Batch batch = batch_of(fixture.at("input_ids"));
  batch.attention_mask_BS = fixture.at("attention_mask");
  const std::pair<const char*, const char*> keys[] = {
      {"a", "logits.active_a"}, {"b", "logits.active_b"}, {"__base__", "logits.disabled"}};
  for (const auto& fast : {nn::FastPaths(), nn::FastPaths::none()}) {
    auto model = model_with_both();
    model->fast_paths = fast;
    for (const auto& [first, first_key] : keys) {
      for (const auto& [second, second_key] : keys) {
        INFO(first << ", " << second);
        const AdapterRows rows(*model, {first, second});
        const at::Tensor logits = model->forward(batch);
        CHECK(largest_difference(logits[0], expected.at(first_key)[0]) < 2e-5);
        CHECK(largest_difference(logits[1], expected.at(second_key)[1]) < 2e-5);
      }
    }
  }
}

TEST_CASE("adapters by row equal every row alone, with and without a cache", "[parity]") {
  const torch::NoGradGuard no_grad;
  at::manual_seed(1);
  auto model = model_with_both();
  const Names names = {"b", "__base__", "a", "a"};
  const at::Tensor ids = at::randint(0, 128, {4, 9}, at::kLong);
  std::vector<at::Tensor> alone;
  for (size_t i = 0; i < names.size(); ++i) {
    set_active_adapters(*model, names[i] == kBaseRows ? Names{} : Names{names[i]});
    alone.push_back(model->forward(batch_of(ids.narrow(0, static_cast<int64_t>(i), 1))));
  }
  const at::Tensor expected = at::cat(alone);
  const AdapterRows rows(*model, names);
  CHECK(largest_difference(model->forward(batch_of(ids)), expected) < 1e-6 * expected.abs().max().item<double>());

  nn::KvCache cache(model->num_layers());
  std::vector<at::Tensor> steps = {model->forward(batch_of(ids.narrow(1, 0, 4)), &cache)};
  for (int64_t i = 4; i < 9; ++i) steps.push_back(model->forward(batch_of(ids.narrow(1, i, 1)), &cache));
  CHECK(largest_difference(at::cat(steps, 1), expected) < 2e-6 * expected.abs().max().item<double>());
}

TEST_CASE("adapters by row work on a bf16 base and on streamed weights", "[parity]") {
  const torch::NoGradGuard no_grad;
  at::manual_seed(2);
  const at::Tensor ids = at::randint(0, 128, {2, 9}, at::kLong);
  const auto logits_of = [&](llama::LlamaForCausalLMImpl& model, const Names& names) {
    const AdapterRows rows(model, names);
    return model.forward(batch_of(ids));
  };
  auto half = model_with_both(at::kBFloat16);
  set_active_adapters(*half, {"a"});
  const at::Tensor a = half->forward(batch_of(ids));
  const at::Tensor mixed = logits_of(*half, {"a", "b"});
  CHECK(largest_difference(mixed[0], a[0]) < 0.05);
  CHECK(largest_difference(mixed[1], a[1]) > 0.2);

  auto held = model_with_both();
  auto streamed = llama::load(reference() / "base", {.offload = nn::Offload::kDisk});
  load_adapter(*streamed, reference() / "multi_adapter/a", "a");
  load_adapter(*streamed, reference() / "multi_adapter/b", "b");
  streamed->eval();
  CHECK(largest_difference(logits_of(*streamed, {"b", "a"}), logits_of(*held, {"b", "a"})) < 1e-6);
}

TEST_CASE("an adapted head cannot tell rows of states that were picked out", "[parity]") {
  const torch::NoGradGuard no_grad;
  auto model = llama::load(reference() / "base");
  inject(*model, {.init = "false", .targets = Names{"lm_head"}}, "head");
  set_active_adapters(*model, {});
  model->eval();
  Batch batch = batch_of(at::randint(0, 128, {2, 3}, at::kLong));
  batch.labels_BS = batch.input_ids_BS.clone();
  batch.labels_BS.slice(1, 0, 2).fill_(kIgnoreLabel);  // two targets, as many as rows
  const AdapterRows rows(*model, {"head", "__base__"});
  CHECK_NOTHROW(model->forward(batch));
  CHECK_THROWS_AS(nn::causal_lm_loss_sum(*model, batch), ShapeError);
}
