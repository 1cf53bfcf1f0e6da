#include "lora/train/nonfinite.h"

#include <ATen/ATen.h>

#include <limits>

#include "lora/nn/loss.h"
#include "support.h"
#include "train/training_setup.h"

using namespace lora;
using namespace lora::testing;
using train::locate_nonfinite;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TinyLayerImpl& layer(TinyModelImpl& model, size_t index) { return *model.layers[index]->as<TinyLayerImpl>(); }

}  // namespace

TEST_CASE("nothing is found where all is finite", "[train]") {
  auto setup = lora_setup();
  CHECK(locate_nonfinite(*setup.model, batches_of(tiny_dataset(4), 2), at::kFloat).empty());
}

TEST_CASE("a bad parameter is named", "[train]") {
  auto setup = lora_setup();
  const at::NoGradGuard no_grad;
  layer(*setup.model, 1).norm->weight[3] = std::numeric_limits<float>::quiet_NaN();
  const auto text = locate_nonfinite(*setup.model, batches_of(tiny_dataset(4), 2), at::kFloat);
  CHECK(contains(text, "parameter layers.1.norm.weight"));
}

TEST_CASE("the first bad output is named with its rows", "[train]") {
  const at::NoGradGuard no_grad;
  TinyModelImpl model;
  SECTION("a layer that overflows in fp16 for every row") {
    layer(model, 1).proj->weight.fill_(6e4);
    const auto text = locate_nonfinite(model, batches_of(tiny_dataset(3), 3), at::kHalf);
    CHECK(contains(text, "output of layers.1.proj is"));
    CHECK(contains(text, "data row(s) 1, 2, 3"));
    CHECK(locate_nonfinite(model, batches_of(tiny_dataset(3), 3), at::kFloat).empty());
  }
  SECTION("a token that overflows, in the rows that have it twice") {
    model.embed->weight[5].fill_(3e38);
    auto dataset = tiny_dataset(5);
    for (auto& example : dataset.examples) {
      for (auto& id : example.input_ids) id = id == 5 ? 6 : id;
    }
    for (const size_t row : {1u, 3u}) {
      dataset.examples[row].input_ids[0] = dataset.examples[row].input_ids[1] = 5;
    }
    const auto text = locate_nonfinite(model, batches_of(dataset, 5), at::kFloat);
    CHECK(contains(text, "layers.0.norm"));
    CHECK(text.ends_with("data row(s) 2, 4"));
    // In the second micro-batch it is found as well.
    CHECK(locate_nonfinite(model, batches_of(dataset, 3), at::kFloat).ends_with("row(s) 2"));
    dataset.examples[1].input_ids[0] = 6;
    CHECK(locate_nonfinite(model, batches_of(dataset, 3), at::kFloat).ends_with("row(s) 4"));
  }
  SECTION("the head") {
    model.lm_head->weight.fill_(6e4);
    const auto text = locate_nonfinite(model, batches_of(tiny_dataset(2), 2), at::kHalf);
    CHECK(contains(text, "output of lm_head"));
    CHECK(text.ends_with("data row(s) 1"));
  }
}

TEST_CASE("a bad gradient is named when all values are finite", "[train]") {
  auto setup = lora_setup();
  const auto [name, parameter] = setup.state().optimizer->parameters()[2];
  const PoisonedGradient poison(parameter, 1, std::numeric_limits<double>::infinity());
  const auto batches = batches_of(tiny_dataset(4), 2);
  nn::causal_lm_loss_sum(*setup.model, batches[0]).backward();
  const auto text = locate_nonfinite(*setup.model, batches, at::kFloat);
  CHECK(contains(text, "gradient of " + name));
  CHECK(contains(text, "data row(s) 1, 2, 3, 4"));
}

TEST_CASE("looking leaves mode and random numbers as they were", "[train]") {
  auto setup = lora_setup(tiny_options(), /*dropout=*/0.5);
  layer(*setup.model, 0).eval();
  const auto before = generator_state(at::kCPU);
  CHECK(locate_nonfinite(*setup.model, batches_of(tiny_dataset(4), 2), at::kFloat).empty());
  CHECK(generator_state(at::kCPU).equal(before));
  CHECK(setup.model->is_training());
  CHECK(layer(*setup.model, 1).proj->is_training());
  CHECK_FALSE(layer(*setup.model, 0).proj->is_training());
}
