// Ten steps of training against Transformers + PEFT + torch.optim.AdamW (fixtures outside the
// tree).
#include <ATen/ATen.h>

#include "formats/json.h"
#include "lora/adapters/adapter_io.h"
#include "lora/adapters/freeze.h"
#include "lora/core/file.h"
#include "lora/io/safetensors.h"
#include "lora/models/llama/load.h"
#include "lora/train/trainer.h"
#include "support.h"

using namespace lora;

namespace {

/// The rows that every fixture was trained on.
Batch fixture_batch(const Path& base) {
  const auto tensors = io::load_safetensors(base / "batch.safetensors");
  Batch batch;
  batch.input_ids_BS = tensors.at("input_ids");
  batch.labels_BS = tensors.at("labels");
  batch.attention_mask_BS = tensors.at("attention_mask");
  batch.rows = {1, 2};
  batch.num_tokens = batch.attention_mask_BS.sum().item<int64_t>();
  const int64_t length = batch.labels_BS.size(1);
  batch.num_targets = (batch.labels_BS.slice(1, 1, length) != kIgnoreLabel).sum().item<int64_t>();
  return batch;
}

struct Expected {
  std::vector<double> losses;
  double lr = 0;
};

Expected expected_of(const Path& file) {
  const auto json = formats::parse_json(read_file(file), file.string());
  return {json.at("step_losses").get<std::vector<double>>(), json.at("optimizer").at("lr")};
}

void check_losses(train::Trainer& trainer, const Batch& batch, const Expected& expected) {
  for (const double loss : expected.losses) {
    CHECK(trainer.step(std::span(&batch, 1)).loss == Approx(loss).epsilon(1e-5));
  }
}

train::TrainerOptions fixture_options(const Expected& expected) {
  train::TrainerOptions options;
  options.learning_rate = expected.lr;
  options.clip_norm = 0;
  options.optimizer.weight_decay = 0.01;
  options.optimizer.no_decay = {};
  return options;
}

void check_close(const at::Tensor& value, const at::Tensor& expected, const std::string& name) {
  CAPTURE(name);
  CHECK((value - expected).abs().max().item<double>() < 2e-5);
}

}  // namespace

TEST_CASE("training an adapter follows PEFT", "[train]") {
  const auto folder = testing::outside_data("fixtures/peft");
  if (!folder) return;
  const std::string name = GENERATE("lora", "rslora", "lora_all_linear_patterns",
                                    "lora_regex_layers", "lora_modules_to_save", "lora_embedding");
  CAPTURE(name);
  const auto expected = expected_of(*folder / name / "expected.json");
  const auto model = llama::load(*folder / "base");
  const auto adapters = load_adapter(*model, *folder / name / "init");
  freeze_base(*model, adapters);
  train::Trainer trainer(model, adapters, fixture_options(expected));
  check_losses(trainer, fixture_batch(*folder / "base"), expected);

  const auto trained = adapter_to_files(adapters).tensors;
  const auto final = io::load_safetensors(*folder / name / "final/adapter_model.safetensors");
  for (const auto& [key, tensor] : trained) check_close(tensor, final.at(key), key);
}

TEST_CASE("training every parameter follows Transformers", "[train]") {
  const auto folder = testing::outside_data("fixtures/peft");
  if (!folder) return;
  const auto expected = expected_of(*folder / "full_ft/expected.json");
  const auto model = llama::load(*folder / "base");
  train_all(*model);
  train::Trainer trainer(model, {}, fixture_options(expected));
  check_losses(trainer, fixture_batch(*folder / "base"), expected);

  const auto parameters = model->named_parameters();
  for (const auto& [key, tensor] : io::load_safetensors(*folder / "full_ft/final.safetensors")) {
    check_close(parameters[key], tensor, key);
  }
}
