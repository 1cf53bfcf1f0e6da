#include "lora/train/speed_of_light.h"

#include <ATen/ATen.h>

#include "catch.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/models/llama.h"

using namespace lora;

TEST_CASE("a step's operations are those of its products and its attention", "[train]") {
  const auto config = llama::fresh_llama_config(std::nullopt, {{"vocab_size", "50"},
                                                               {"hidden_size", "8"},
                                                               {"intermediate_size", "12"},
                                                               {"num_hidden_layers", "2"},
                                                               {"num_attention_heads", "2"},
                                                               {"num_key_value_heads", "1"},
                                                               {"max_position_embeddings", "64"}});
  llama::LlamaForCausalLMImpl model(config);
  const double weights = 2 * (8 * 8 + 2 * 4 * 8 + 8 * 8 + 3 * 8 * 12), head = 50 * 8;
  Batch batch;
  batch.input_ids_BS = at::zeros({2, 6}, at::kLong);
  batch.num_tokens = 10;
  batch.num_targets = 3;
  // Rows of five real tokens on average.
  const double attention = 6 * (2 * 5 * 5) * 2 * 8;
  train_all(model);
  CHECK(train::step_flops(model, {&batch, 1}) == Approx(6 * (10 * weights + 3 * head) + attention));
  const auto adapters = inject(model, {});
  freeze_base(model, adapters);
  CHECK(train::step_flops(model, {&batch, 1}) == Approx(4 * (10 * weights + 3 * head) + attention));
  batch.segment_lengths = {4, 6};
  CHECK(train::step_flops(model, {&batch, 1}) == Approx(4 * (10 * weights + 3 * head) + 6.0 * (16 + 36) * 2 * 8));
}

TEST_CASE("the machine multiplies at some speed", "[train]") {
  CHECK(train::matmul_flops_per_second(at::kCPU, at::kFloat) > 1e8);
}
