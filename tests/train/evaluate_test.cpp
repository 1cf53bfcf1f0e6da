#include "lora/train/evaluate.h"

#include <ATen/ATen.h>

#include "lora/core/error.h"
#include "lora/nn/loss.h"
#include "support.h"
#include "train/training_setup.h"

using namespace lora;
using namespace lora::testing;

namespace {

train::EvalResult evaluate(nn::CausalLMImpl& model, const ListedRows& dataset, int64_t batch_size,
                           at::ScalarType amp_dtype = at::kFloat) {
  return train::evaluate(model, dataset, batch_size, at::kCPU, amp_dtype, /*pad_id=*/0);
}

}  // namespace

TEST_CASE("evaluation is the mean over all targets, whatever the batch size", "[train]") {
  TinyModelImpl model;
  const auto dataset = tiny_dataset(7);
  double sum = 0;
  int64_t targets = 0;
  for (const auto& batch : batches_of(dataset, 1)) {
    const at::Tensor logits_TV = model.forward(batch)[0].detach().to(at::kDouble);
    for (int64_t i = 2; i < logits_TV.size(0); ++i) {  // the first two tokens are no targets
      const auto token = batch.input_ids_BS[0][i].item<int64_t>();
      sum -= logits_TV[i - 1].log_softmax(0)[token].item<double>();
      ++targets;
    }
  }
  for (const int64_t size : {1, 3, 7, 100}) {
    const auto result = evaluate(model, dataset, size);
    CHECK(result.rows == 7);
    CHECK(result.targets == targets);
    CHECK(result.loss == Approx(sum / static_cast<double>(targets)).epsilon(1e-6));
  }
  CHECK(evaluate(model, dataset, 3, at::kBFloat16).loss == Approx(sum / static_cast<double>(targets)).epsilon(0.02));
}

TEST_CASE("evaluation leaves no trace", "[train]") {
  auto setup = lora_setup(tiny_options(), /*dropout=*/0.5);
  auto& kept = *setup.model->layers[0];
  kept.eval();
  const auto dataset = tiny_dataset(6);
  const auto generator = generator_state(at::kCPU);
  const auto values = values_of(*setup.model);
  const double first = evaluate(*setup.model, dataset, 4).loss;
  CHECK(evaluate(*setup.model, dataset, 4).loss == first);
  CHECK(generator_state(at::kCPU).equal(generator));
  CHECK(setup.model->is_training());
  CHECK(setup.model->layers[1]->is_training());
  CHECK_FALSE(kept.is_training());
  CHECK(same_bits(values_of(*setup.model), values));
  CHECK_FALSE(setup.step(batches_of(dataset, 3)).overflow);  // training goes on
}

TEST_CASE("evaluation of nothing", "[train]") {
  TinyModelImpl model;
  const auto result = evaluate(model, {}, 4);
  CHECK(result.rows == 0);
  CHECK(result.loss == 0);
  CHECK_THROWS_AS(evaluate(model, tiny_dataset(2), 0), ConfigError);
}
