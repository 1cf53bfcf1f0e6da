// Training on a GPU against training on the CPU.
#include <ATen/ATen.h>
#include <torch/utils.h>

#include "cuda/gpu.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/data/collate.h"
#include "lora/data/dataset.h"
#include "lora/data/loader.h"
#include "lora/models/llama.h"
#include "lora/nn/loss.h"
#include "lora/ops/device.h"
#include "lora/train/speed_of_light.h"
#include "lora/train/trainer.h"
#include "train/recorded_steps.h"

using namespace lora;
using namespace lora::testing;

namespace {

constexpr int64_t kVocabulary = 50;

std::shared_ptr<llama::LlamaForCausalLMImpl> small_model() {
  at::manual_seed(1);
  const auto config = llama::fresh_llama_config(std::nullopt, {{"vocab_size", "50"},
                                                               {"hidden_size", "64"},
                                                               {"intermediate_size", "96"},
                                                               {"num_hidden_layers", "2"},
                                                               {"num_attention_heads", "4"},
                                                               {"num_key_value_heads", "2"},
                                                               {"max_position_embeddings", "64"},
                                                               {"initializer_range", "0.2"}});
  return std::make_shared<llama::LlamaForCausalLMImpl>(config);
}

data::Dataset random_rows(int64_t count) {
  at::manual_seed(2);
  data::Dataset dataset;
  for (int64_t row = 1; row <= count; ++row) {
    data::Example example;
    example.row = row;
    const int64_t length = 10 + row % 22;
    const auto ids = at::randint(kVocabulary, {length}, at::kInt);
    example.input_ids.assign(ids.data_ptr<int32_t>(), ids.data_ptr<int32_t>() + length);
    example.labels = example.input_ids;
    for (int64_t i = 0; i < length / 3; ++i) example.labels[static_cast<size_t>(i)] = kIgnoreLabel;
    dataset.add(example);
  }
  return dataset;
}

Batch batch_of(const data::Dataset& dataset, size_t begin, size_t count, bool packed) {
  std::vector<data::Example> rows;
  for (size_t i = begin; i < begin + count; ++i) rows.push_back(dataset.example(static_cast<int64_t>(i)));
  std::vector<const data::Example*> pointers;
  for (const auto& row : rows) pointers.push_back(&row);
  return packed ? data::collate_packed(pointers, 0, 64) : data::collate(pointers, 0, 32);
}

struct Training {
  std::shared_ptr<llama::LlamaForCausalLMImpl> model = small_model();
  AdapterSet adapters;
  std::unique_ptr<train::Trainer> trainer;

  Training(const at::Device& device, bool full, at::ScalarType dtype, at::ScalarType amp = at::kFloat) {
    if (!full) {
      LoraOptions options;
      options.targets = "all-linear";
      options.init = "false";
      adapters = inject(*model, options);
      freeze_base(*model, adapters);
    }
    if (dtype != at::kFloat) {
      const torch::NoGradGuard no_grad;
      for (auto& parameter : model->parameters()) {
        if (full || !parameter.requires_grad()) parameter.set_data(parameter.to(dtype));
      }
    }
    train::TrainerOptions options;
    options.learning_rate = 1e-3;
    options.device = device;
    options.amp_dtype = amp;
    trainer = std::make_unique<train::Trainer>(model, adapters, options);
  }
};

}  // namespace

TEST_CASE("gpu: training goes as on the CPU", "[cuda]") {
  LORA_SKIP_WITHOUT_GPU();
  const bool full = GENERATE(false, true), packed = GENERATE(false, true);
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  INFO((full ? "all parameters" : "adapters") << (packed ? ", packed" : "") << ", " << c10::toString(dtype));
  const auto dataset = random_rows(24);
  Training here(at::kCPU, full, dtype), there(kGpu, full, dtype);
  for (int step = 0; step < 8; ++step) {  // the record begins after three
    const std::vector<Batch> batches = {batch_of(dataset, 0, 12, packed), batch_of(dataset, 12, 12, packed)};
    const auto expected = here.trainer->step(batches), found = there.trainer->step(batches);
    const double tolerance = dtype == at::kFloat ? 1e-4 : 3e-2;
    CHECK(found.loss == Approx(expected.loss).epsilon(tolerance));
    CHECK(found.grad_norm == Approx(expected.grad_norm).epsilon(10 * tolerance));
    CHECK(found.peak_bytes > 0);
  }
}

TEST_CASE("gpu: fp16 with a loss scale", "[cuda]") {
  LORA_SKIP_WITHOUT_GPU();
  const auto dataset = random_rows(12);
  Training here(at::kCPU, false, at::kFloat), there(kGpu, false, at::kFloat, at::kHalf);
  double expected = 0, found = 0;
  for (int step = 0; step < 20; ++step) {
    const std::vector<Batch> batches = {batch_of(dataset, 0, 12, false)};
    expected = here.trainer->step(batches).loss;
    found = there.trainer->step(batches).loss;
  }
  CHECK(found == Approx(expected).epsilon(0.05));
}

TEST_CASE("gpu: a recorded micro-batch gives the usual loss and gradients, and follows the parameters", "[cuda]") {
  LORA_SKIP_WITHOUT_GPU();
  const auto dataset = random_rows(48);
  Training training(kGpu, false, at::kBFloat16);
  auto& model = *training.model;
  train::RecordedSteps recorded;
  int ran = 0;
  for (int round = 0; round < 12; ++round) {
    // Other rows every time, of one shape.
    const Batch batch = batch_of(dataset, static_cast<size_t>(3 * round), 12, false).to(kGpu);
    const double factor = 0.5 + round;
    const auto loss = recorded.run(model, batch, factor, at::kFloat, /*shares=*/round % 2 == 0);
    std::vector<at::Tensor> found;
    for (auto& parameter : training.adapters.parameters()) {
      found.push_back(parameter.grad().defined() ? parameter.grad().clone() : at::Tensor());
      parameter.mutable_grad() = at::Tensor();
    }
    if (!loss) continue;
    ++ran;
    const at::Tensor expected = nn::causal_lm_loss_sum(model, batch);
    check_near(*loss, expected, 1e-3);
    (expected * factor).backward();
    size_t i = 0;
    for (auto& parameter : training.adapters.parameters()) {
      check_near(found[i++], parameter.grad(), 2e-2);
      const torch::NoGradGuard no_grad;
      parameter.add_(parameter.grad(), -1e-4);
      parameter.mutable_grad() = at::Tensor();
    }
  }
  CHECK(ran >= 1);
}

TEST_CASE("gpu: what cannot be recorded goes the usual way", "[cuda]") {
  LORA_SKIP_WITHOUT_GPU();
  const auto dataset = random_rows(12);
  Training training(kGpu, false, at::kBFloat16);
  const auto runs = [&](const Batch& batch) {
    train::RecordedSteps recorded;
    bool any = false;
    for (int i = 0; i < 6; ++i) any |= recorded.run(*training.model, batch.to(kGpu), 1.0, at::kFloat, false).has_value();
    return any;
  };
  const Batch batch = batch_of(dataset, 0, 12, false);
  CHECK(runs(batch));
  CHECK_FALSE(runs(batch_of(dataset, 0, 12, true)));
  training.model->recompute = nn::Recompute::kFull;
  CHECK_FALSE(runs(batch));
  training.model->recompute = nn::Recompute::kNone;
  training.model->fast_paths.recorded_step = false;
  CHECK_FALSE(runs(batch));
}

TEST_CASE("gpu: a loader's batches, moved beside the work, are those given directly", "[cuda]") {
  LORA_SKIP_WITHOUT_GPU();
  const auto dataset = random_rows(24);
  const data::LoaderOptions options{.batch_size = 4, .shuffle = false, .num_steps = 6};
  Training fed(kGpu, false, at::kFloat), stepped(kGpu, false, at::kFloat);
  std::vector<double> from_fit, from_steps;
  fed.trainer->on_step([&](train::StepResult& result) { from_fit.push_back(result.loss); });
  data::Loader loader(dataset, options), again(dataset, options);
  fed.trainer->fit(loader);
  while (const auto step = again.next()) from_steps.push_back(stepped.trainer->step(step->micro_batches).loss);
  REQUIRE(from_fit.size() == 6);
  REQUIRE(from_steps.size() == 6);
  for (size_t i = 0; i < 6; ++i) CHECK(from_fit[i] == Approx(from_steps[i]).epsilon(1e-4));
}

TEST_CASE("gpu: the machine's numbers", "[cuda]") {
  LORA_SKIP_WITHOUT_GPU();
  CHECK(train::matmul_flops_per_second(kGpu, at::kBFloat16) > 1e13);
  const auto before = peak_bytes(kGpu);
  const auto block =
      at::empty({before > 0 ? static_cast<int64_t>(before) + (1 << 20) : 1 << 20}, at::TensorOptions(kGpu).dtype(at::kByte));
  CHECK(peak_bytes(kGpu) > before);
  CHECK(describe_machine(kGpu).find("cuda:0 (") != std::string::npos);
}
