#include "lora/adapters/fused_rows.h"

#include <ATen/ATen.h>

#include "catch.h"
#include "glm_model.h"
#include "lora/adapters/adapter_io.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "lora/nn/loss.h"
#include "support.h"

using namespace lora;
using lora::testing::glm_batch;
using lora::testing::glm_ids;
using lora::testing::GlmImpl;
using lora::testing::message_of;
using lora::testing::ScratchFolder;
using lora::testing::tiny_glm;

namespace {

LoraOptions fused_targets() { return {.rank = 2, .alpha = 4, .targets = std::vector<std::string>{"query_key_value"}}; }

/// (heads, 3, K, in): the fused rows as the reference splits them, per head q, k, v.
at::Tensor by_parts(const GlmImpl& model, const at::Tensor& rows) {
  return rows.view({model.config.num_attention_heads, 3, model.config.head_dim(), -1});
}

at::Tensor loss_of(GlmImpl& model) {
  Batch batch = glm_batch(glm_ids(6, 5));
  batch.labels_BS = batch.input_ids_BS;
  return model.forward(batch).square().mean();
}

}  // namespace

TEST_CASE("fused rows: the parts are the blocks of each head, and all rows belong to one", "[glm]") {
  const auto model = tiny_glm();
  const auto rows = model->fused_rows("transformer.layers.1.attention.query_key_value");
  const at::Tensor part_of = at::full({3 * model->config.hidden_size}, -1, at::kLong);
  int64_t number = 0;
  for (const char* part : {"q", "k", "v"}) {
    for (const auto& [begin, end] : rows.at(part)) part_of.slice(0, begin, end).fill_(number);
    ++number;
  }
  const auto blocks = by_parts(*model, part_of);
  for (int64_t i = 0; i < 3; ++i) CHECK(blocks.select(1, i).eq(i).all().item<bool>());
  CHECK(model->fused_rows("transformer.layers.1.attention.dense").empty());
}

TEST_CASE("fused rows: only the named parts' rows of B move, by the gradients that they have without it", "[glm]") {
  const auto with = tiny_glm(), without = tiny_glm();
  const auto adapters = inject(*with, fused_targets()), plain = inject(*without, fused_targets());
  train_fused_rows(*with, adapters, {"q", "v"});
  const auto report = freeze_base(*with, adapters);
  freeze_base(*without, plain);
  const auto& config = with->config;
  CHECK(report.trainable == config.num_layers * 2 * (config.hidden_size + 2 * config.hidden_size));
  CHECK(numbers_held_at_zero(adapters) == config.num_layers * 2 * config.hidden_size);
  CHECK(numbers_held_at_zero(plain) == 0);

  const torch::NoGradGuard no_grad;
  for (size_t i = 0; i < adapters.parameters().size(); ++i) plain.parameters()[i].copy_(adapters.parameters()[i]);
  for (int step = 0; step < 2; ++step) {
    for (const auto& [model, set] : {std::pair{with, adapters}, std::pair{without, plain}}) {
      const at::AutoGradMode grad(true);
      loss_of(*model).backward();
    }
    for (size_t i = 0; i < adapters.parameters().size(); ++i) {
      at::Tensor parameter = adapters.parameters()[i], other = plain.parameters()[i];
      if (parameter.size(0) == 3 * config.hidden_size) {
        const auto gradient = by_parts(*with, parameter.grad()), expected = by_parts(*with, other.grad());
        CHECK(gradient.select(1, 1).count_nonzero().item<int64_t>() == 0);
        CHECK(expected.select(1, 1).count_nonzero().item<int64_t>() > 0);
        for (const int64_t part : {0, 2}) {
          CHECK(gradient.select(1, part).count_nonzero().item<int64_t>() > 0);
          if (step == 0) CHECK(at::equal(gradient.select(1, part), expected.select(1, part)));
        }
      }
      parameter.sub_(parameter.grad());
      parameter.mutable_grad() = at::Tensor();
      other.mutable_grad() = at::Tensor();
    }
  }
  for (const auto& parameter : adapters.parameters()) {
    if (parameter.size(0) == 3 * config.hidden_size) CHECK(by_parts(*with, parameter).select(1, 1).count_nonzero().item<int64_t>() == 0);
  }
}

TEST_CASE("fused rows: what cannot be is refused", "[glm]") {
  const auto refusal = [](const MethodOptions& options, const std::vector<std::string>& parts) {
    const auto model = tiny_glm();
    const auto adapters = inject_method(*model, options);
    return message_of<ConfigError>([&] { train_fused_rows(*model, adapters, parts); });
  };
  CHECK(refusal(fused_targets(), {"w"}).find("k, q, v") != std::string::npos);
  CHECK(refusal(fused_targets(), {}).find("a part must be named") != std::string::npos);
  LoraOptions others = fused_targets();
  others.targets = std::vector<std::string>{"dense"};
  CHECK(refusal(others, {"q"}).find("attention.dense") != std::string::npos);
  LoraOptions dora = fused_targets();
  dora.dora = true;
  CHECK(refusal(dora, {"q"}).find("plain LoRA") != std::string::npos);
  LoraOptions drawn = fused_targets();
  drawn.init = "false";
  CHECK(refusal(drawn, {"q"}).find("init_lora_weights") != std::string::npos);
  CHECK(refusal(Ia3Options{.targets = std::vector<std::string>{"query_key_value"}, .feedforward = std::vector<std::string>{}}, {"q"}).find("plain LoRA") != std::string::npos);

  // An adapter of other rows, from a file.
  const auto model = tiny_glm();
  const auto adapters = inject(*model, fused_targets());
  {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : adapters.parameters()) parameter.fill_(1);
  }
  CHECK(message_of<ConfigError>([&] { train_fused_rows(*model, adapters, {"q"}); }).find("must be zero") != std::string::npos);
  CHECK_NOTHROW(train_fused_rows(*model, adapters, {"q", "k", "v"}));
}
