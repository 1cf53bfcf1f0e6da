// What a recorded micro-batch computes, on the CPU; recording itself is looked at in tests/cuda.
#include "train/recorded_steps.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "catch.h"
#include "lora/nn/loss.h"
#include "train/tiny_model.h"

using namespace lora;
using namespace lora::testing;

namespace {

/// A batch as it arrives on a GPU: with its targets.
Batch with_targets(Batch batch) {
  batch.targets = targets_of(batch);
  return batch;
}

std::vector<at::Tensor> loss_and_gradients(TinyModelImpl& model, const Batch& batch) {
  const at::Tensor loss = nn::causal_lm_loss_sum(model, batch);
  auto results = torch::autograd::grad({loss}, model.parameters());
  results.push_back(loss.detach());
  return results;
}

}  // namespace

TEST_CASE("recorded steps: few distinct numbers of targets, never more than there are positions", "[train]") {
  std::set<int64_t> distinct;
  for (int64_t targets = 1; targets <= 62; ++targets) {
    Batch batch;
    batch.input_ids_BS = at::zeros({2, 32}, at::kLong);
    batch.targets.label_T = at::zeros({targets}, at::kLong);
    const auto shape = train::recorded_shape(batch);
    CHECK(shape.rows == 2);
    CHECK(shape.length == 32);
    CHECK(shape.targets >= targets);
    CHECK(shape.targets <= 62);
    distinct.insert(shape.targets);
  }
  CHECK(distinct.size() <= 8);
}

TEST_CASE("recorded steps: filling up with targets that count for nothing changes no loss and no gradient", "[train]") {
  TinyModelImpl model;
  const auto dataset = tiny_dataset(6);
  for (const Batch& plain : batches_of(dataset, 3)) {
    const Batch batch = with_targets(plain);
    const auto own = train::recorded_shape(batch);
    const int64_t positions = plain.input_ids_BS.size(0) * (plain.input_ids_BS.size(1) - 1);
    // As it is, filled up, and with a place for every position.
    for (const int64_t targets : {batch.targets.label_T.numel(), own.targets, positions - 1, positions}) {
      INFO(targets << " targets in " << positions << " positions");
      const Batch filled = train::filled_up(batch, {own.rows, own.length, targets});
      CHECK(filled.targets.label_T.numel() == targets);
      const auto found = loss_and_gradients(model, filled), expected = loss_and_gradients(model, plain);
      for (size_t i = 0; i < found.size(); ++i) {
        const double scale = std::max(1.0, expected[i].abs().max().item<double>());
        CHECK((found[i] - expected[i]).abs().max().item<double>() <= 1e-6 * scale);
      }
    }
  }
}
