// A packed row gives what its sequences give by themselves.
#include <ATen/ATen.h>
#include <torch/utils.h>

#include "catch.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "lora/data/collate.h"
#include "lora/models/llama.h"
#include "lora/nn/loss.h"

using namespace lora;

namespace {

std::shared_ptr<llama::LlamaForCausalLMImpl> small_model() {
  const auto config = llama::fresh_llama_config(std::nullopt, {{"vocab_size", "50"},
                                                               {"hidden_size", "32"},
                                                               {"intermediate_size", "48"},
                                                               {"num_hidden_layers", "2"},
                                                               {"num_attention_heads", "4"},
                                                               {"num_key_value_heads", "2"},
                                                               {"max_position_embeddings", "64"},
                                                               {"initializer_range", "0.2"}});
  return std::make_shared<llama::LlamaForCausalLMImpl>(config);
}

std::vector<data::Example> random_rows(const std::vector<int64_t>& lengths) {
  std::vector<data::Example> rows;
  for (const int64_t length : lengths) {
    data::Example example;
    const auto ids = at::randint(50, {length}, at::kInt);
    example.input_ids.assign(ids.data_ptr<int32_t>(), ids.data_ptr<int32_t>() + length);
    example.labels = example.input_ids;
    for (int64_t i = 0; i < length / 3; ++i) example.labels[static_cast<size_t>(i)] = kIgnoreLabel;
    rows.push_back(example);
  }
  return rows;
}

struct Result {
  double loss;
  std::vector<at::Tensor> gradients;
};

Result run(nn::CausalLMImpl& model, const AdapterSet& adapters, const Batch& batch) {
  const at::Tensor loss = nn::causal_lm_loss_sum(model, batch) / batch.num_targets;
  loss.backward();
  Result result{loss.item<double>(), {}};
  const auto parameters = adapters ? adapters.parameters() : model.parameters();
  for (at::Tensor parameter : parameters) {
    result.gradients.push_back(parameter.grad().clone());
    parameter.mutable_grad() = at::Tensor();
  }
  return result;
}

void check_packed_equals_padded(llama::LlamaForCausalLMImpl& model, const AdapterSet& adapters) {
  // Lengths at and beside the borders of classes; more than eight of one class, so that it is filled up.
  const auto rows = random_rows({5, 33, 2, 64, 17, 32, 8, 40, 3, 9, 12, 31, 1, 24, 30});
  std::vector<const data::Example*> pointers;
  for (const auto& row : rows) pointers.push_back(&row);
  const auto padded = run(model, adapters, data::collate(pointers, 0));
  const auto packed = run(model, adapters, data::collate_packed(pointers, 0, 64));
  CHECK(packed.loss == Approx(padded.loss).epsilon(1e-6));
  REQUIRE(packed.gradients.size() == padded.gradients.size());
  for (size_t i = 0; i < packed.gradients.size(); ++i) {
    const double scale = std::max(1.0, padded.gradients[i].abs().max().item<double>());
    CHECK((packed.gradients[i] - padded.gradients[i]).abs().max().item<double>() < 1e-6 * scale);
  }
}

}  // namespace

TEST_CASE("packed rows give the losses and gradients of padded ones", "[llama]") {
  at::manual_seed(1);
  auto model = small_model();
  model->fast_paths = GENERATE(nn::FastPaths(), nn::FastPaths::none());
  SECTION("LoRA on everything") {
    LoraOptions options;
    options.targets = "all-linear";
    options.init = "gaussian";
    const auto adapters = inject(*model, options);
    {
      const torch::NoGradGuard no_grad;
      for (auto& parameter : adapters.parameters()) parameter.normal_(0, 0.2);
    }
    freeze_base(*model, adapters);
    check_packed_equals_padded(*model, adapters);
  }
  SECTION("LoRA on the embedding, a head trained whole") {
    LoraOptions options;
    options.targets = std::vector<std::string>{"embed_tokens", "v_proj"};
    options.modules_to_save = {"lm_head"};
    options.init = "false";
    const auto adapters = inject(*model, options);
    freeze_base(*model, adapters);
    check_packed_equals_padded(*model, adapters);
  }
  SECTION("full fine-tuning") { check_packed_equals_padded(*model, {}); }
}

TEST_CASE("a packed batch that contradicts itself is refused", "[llama]") {
  auto model = small_model();
  const auto rows = random_rows({5, 6});
  Batch batch = data::collate_packed(std::vector<const data::Example*>{&rows[0], &rows[1]}, 0);
  batch.segment_lengths = {5, 5};
  CHECK_THROWS_AS(model->hidden(batch), ShapeError);
  batch.segment_lengths = {11, 0};
  CHECK_THROWS_AS(model->hidden(batch), ShapeError);
  batch.segment_lengths = {5, 6};
  batch.attention_mask_BS = at::ones({1, 11}, at::kLong);
  CHECK_THROWS_AS(model->hidden(batch), ShapeError);
  const auto long_rows = random_rows({65});
  CHECK_THROWS_AS(model->hidden(data::collate_packed(std::vector<const data::Example*>{&long_rows[0]}, 0)), ShapeError);
}
