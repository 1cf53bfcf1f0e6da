#include "lora/adapters/freeze.h"

#include "adapters/fake_llama.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "support.h"

using namespace lora;
using testing::FakeLlama;
using testing::message_of;
using Names = std::vector<std::string>;

namespace {

const testing::FakeSizes kSmall{.hidden = 8, .intermediate = 12, .vocab = 20, .layers = 2};
// Two tables of 20 x 8; per layer four 8 x 8, three 8 x 12, two norms of 8; one norm of 8.
constexpr int64_t kBase = 2 * 160 + 2 * (4 * 64 + 3 * 96 + 2 * 8) + 8;

/// Ties the head to the embedding the way a model does: one tensor, registered twice.
struct Tied : torch::nn::Module {
  Tied() : embed(register_module("embed", nn::Embedding(20, 8))), body(register_module("body", nn::Linear(8, 8))) {
    head = register_parameter("head", embed->weight);
  }
  nn::Embedding embed;
  nn::Linear body;
  at::Tensor head;
};

}  // namespace

TEST_CASE("only the adapter trains, and the counts are exact", "[adapters]") {
  FakeLlama model(kSmall);
  const auto set = inject(model, {.rank = 2, .targets = Names{"q_proj", "up_proj"}});
  const auto report = freeze_base(model, set);
  const int64_t adapter = 2 * (2 * (8 + 8) + 2 * (8 + 12));
  CHECK(report.trainable == adapter);
  CHECK(report.total == kBase + adapter);
  CHECK(report.trainable_names.size() == 8);
  CHECK(report.trainable_names.front() == "model.layers.0.self_attn.q_proj.default.lora_A");
  for (const auto& parameter : model.named_parameters()) {
    CHECK(parameter.value().requires_grad() == (parameter.key().find("lora_") != std::string::npos));
  }
}

TEST_CASE("the summary reads as PEFT's", "[adapters]") {
  const FreezeReport report{.trainable = 4'194'304, .total = 6'742'609'920, .trainable_names = {}};
  CHECK(report.summary() == "trainable params: 4,194,304 || all params: 6,742,609,920 || trainable%: 0.0622");
}

TEST_CASE("a tied tensor counts once", "[adapters]") {
  Tied model;
  const auto set = inject(model, {.rank = 1, .targets = Names{"body"}});
  CHECK(freeze_base(model, set).total == 160 + 64 + 16);
  CHECK(train_all(model).trainable == 160 + 64 + 16);
}

TEST_CASE("rules freeze first and free after", "[adapters]") {
  FakeLlama model(kSmall);
  model.to(at::kBFloat16);
  const auto set = inject(model, {.rank = 2, .targets = Names{"q_proj", "up_proj"}});
  const auto report =
      freeze_base(model, set, {.train = {R"(layers\.1\.input_layernorm)", R"(1\.mlp.*lora_A)"}, .freeze = {"lora_A$"}});
  CHECK(report.trainable_names ==
        Names{"model.layers.0.self_attn.q_proj.default.lora_B", "model.layers.0.mlp.up_proj.default.lora_B",
              "model.layers.1.self_attn.q_proj.default.lora_B", "model.layers.1.mlp.up_proj.default.lora_A",
              "model.layers.1.mlp.up_proj.default.lora_B", "model.layers.1.input_layernorm.weight"});
  const auto parameters = model.named_parameters();
  CHECK(parameters["model.layers.1.input_layernorm.weight"].scalar_type() ==
        at::kBFloat16);  // the optimizer updates a copy in fp32
  CHECK(parameters["model.layers.0.input_layernorm.weight"].scalar_type() == at::kBFloat16);
}

TEST_CASE("everything trains in full fine-tuning but what is frozen", "[adapters]") {
  FakeLlama model(kSmall);
  model.to(at::kHalf);
  CHECK(train_all(model).trainable == kBase);
  for (const auto& parameter : model.parameters()) CHECK(parameter.scalar_type() == at::kFloat);
  const auto report = train_all(model, {.train = {}, .freeze = {"embed_tokens", "lm_head"}});
  CHECK(report.trainable == kBase - 320);
  CHECK(report.total == kBase);
}

TEST_CASE("rules without effect and nothing to train are errors", "[adapters]") {
  FakeLlama model(kSmall);
  const auto set = inject(model, {});
  const auto text = message_of<ConfigError>([&] { freeze_base(model, set, {.train = {"lm_heat"}, .freeze = {}}); });
  CHECK(text.find("lm_head.weight") != std::string::npos);
  CHECK(text.starts_with("[train]"));
  message_of<ConfigError>([&] { freeze_base(model, set, {.train = {}, .freeze = {"lm_heat"}}); });
  message_of<ConfigError>([&] { freeze_base(model, set, {.train = {}, .freeze = {"("}}); });
  message_of<ConfigError>([&] { freeze_base(model, set, {.train = {}, .freeze = {"lora"}}); });
  message_of<ConfigError>([&] { train_all(model, {.train = {}, .freeze = {".*"}}); });
  set_active_adapters(model, {});
  CHECK(message_of<ConfigError>([&] { freeze_base(model, set); }).find("inactive") != std::string::npos);
}

TEST_CASE("no module of AdaLoRA may be frozen, whose importance nobody would know", "[adapters]") {
  FakeLlama model(kSmall);
  AdaLoraOptions options;
  options.targets = Names{"q_proj"};
  options.total_steps = 100;
  const auto set = inject(model, options);
  freeze_base(model, set, {.train = {}, .freeze = {"layers.0.input_layernorm"}});
  const auto text =
      message_of<ConfigError>([&] { freeze_base(model, set, {.train = {}, .freeze = {R"(layers\.1\..*lora_E)"}}); });
  CHECK(text.find("model.layers.1.self_attn.q_proj") != std::string::npos);
}

TEST_CASE("modules to save stay trainable in a frozen base", "[adapters]") {
  FakeLlama model(kSmall);
  const auto set = inject(model, {.rank = 1, .targets = Names{"q_proj"}, .modules_to_save = {"lm_head"}});
  const auto report = freeze_base(model, set);
  CHECK(report.trainable == 2 * 16 + 160);
  CHECK(report.trainable_names.back() == "lm_head.weight");
}

TEST_CASE("a frozen parameter keeps no gradient of before", "[adapters]") {
  FakeLlama model(kSmall);
  train_all(model);
  for (auto& entry : model.named_parameters()) entry.value().mutable_grad() = at::ones_like(entry.value());
  freeze_base(model, inject(model, {.rank = 1, .targets = Names{"q_proj"}}));
  for (const auto& entry : model.named_parameters()) CHECK_FALSE(entry.value().grad().defined());
}
