// The same numbers as Hugging Face PEFT: fixtures in tests/reference/peft (see README.md there).
// Tolerances: logits and gradients 2e-5, losses of ten AdamW steps 2e-4, weights after them 2e-3.
#include <ATen/ATen.h>
#include <torch/utils.h>

#include <cstdlib>

#include "catch.h"
#include "formats/json.h"
#include "lora/adapters/adapter_io.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/core/file.h"
#include "lora/io/safetensors.h"
#include "lora/models/llama.h"
#include "lora/nn/loss.h"
#include "lora/train/step.h"
#include "parity/peft_fixture.h"

using namespace lora;
using namespace lora::testing::peft;

namespace {

/// "model.layers.0.self_attn.q_proj.default.lora_A" -> PEFT's name in files.
std::string file_name(const std::string& name) {
  constexpr std::string_view kAdapter = ".default.";
  const auto adapter = name.find(kAdapter);
  if (adapter == std::string::npos) return "base_model.model." + name;
  const std::string without = name.substr(0, adapter) + "." + name.substr(adapter + kAdapter.size());
  const bool is_bare = name.find("lora_embedding") != std::string::npos || name.find("magnitude") != std::string::npos ||
                       name.find("ia3_l") != std::string::npos;
  return "base_model.model." + without + (is_bare ? "" : ".weight");
}

void check_case(const std::string& name, const std::string& base, const Setting& setting) {
  INFO("case " << name << (setting.masked ? ", masked" : ", no mask"));
  const auto expected = io::load_safetensors(reference() / name / "expected.safetensors");
  const auto info = expected_json(name);
  Batch batch = fixture_batch();
  const at::Tensor is_real_BS1 = batch.attention_mask_BS.unsqueeze(-1);
  if (!setting.masked) batch.attention_mask_BS = at::Tensor();

  auto model = load_base(base);
  model->fast_paths = setting.fast;
  const AdapterSet adapters = load_adapter(*model, reference() / name / "init");
  freeze_base(*model, adapters);
  model->train();

  CHECK(largest_difference(model->forward(batch) * is_real_BS1, expected.at("logits") * is_real_BS1) < 2e-5);
  const at::Tensor loss = nn::causal_lm_loss_sum(*model, batch) / batch.num_targets;
  CHECK(std::abs(loss.item<double>() - info.at("loss").get<double>()) < 2e-5);
  loss.backward();
  size_t gradients = 0;
  for (const auto& [parameter, tensor] : adapters.named_parameters()) {
    INFO(parameter);
    const auto found = expected.find("grad." + file_name(parameter));
    REQUIRE(found != expected.end());
    REQUIRE(tensor.grad().defined());
    CHECK(largest_difference(tensor.grad(), found->second) < 2e-5);
    tensor.mutable_grad() = at::Tensor();
    ++gradients;
  }
  CHECK(gradients == info.at("trainable_order").size());
  for (const auto& parameter : model->named_parameters()) {
    if (!parameter.value().requires_grad()) CHECK_FALSE(parameter.value().grad().defined());
  }

  auto state = make_state(adapters, adapters.named_parameters(), 5e-3);
  for (const auto& step_loss : info.at("step_losses")) {
    const auto result = train::train_step(*model, {&batch, 1}, state);
    CHECK(std::abs(result.loss - step_loss.get<double>()) < 2e-4);
  }
  const auto trained = adapter_to_files(adapters);
  const auto reference_final = io::load_safetensors(reference() / name / "final/adapter_model.safetensors");
  REQUIRE(trained.tensors.size() == reference_final.size());
  for (const auto& [tensor_name, tensor] : reference_final) {
    INFO(tensor_name);
    REQUIRE(trained.tensors.contains(tensor_name));
    CHECK(largest_difference(trained.tensors.at(tensor_name), tensor) < 2e-3);
  }
}

/// The reference's trained adapter on a fresh base: same logits; merged: same again, and the merged weights.
void check_final(const std::string& name, const std::string& base) {
  INFO("case " << name);
  const torch::NoGradGuard no_grad;
  const auto expected = io::load_safetensors(reference() / name / "expected.safetensors");
  const Batch batch = fixture_batch();
  auto model = load_base(base);
  AdapterSet adapters = load_adapter(*model, reference() / name / "final");
  model->eval();
  const at::Tensor logits = model->forward(batch);
  CHECK(largest_difference(logits, expected.at("final_logits")) < 2e-5);
  adapters.merge();
  CHECK(largest_difference(model->forward(batch), logits) < 1e-5);
  const auto parameters = model->named_parameters();
  for (const auto& [key, tensor] : expected) {
    if (key.starts_with("merged.")) CHECK(largest_difference(parameters[key.substr(7)], tensor) < 1e-6);
  }
  adapters.unmerge();
  CHECK(largest_difference(model->forward(batch), logits) < 1e-5);
}

const std::vector<std::pair<std::string, std::string>> kCases = {
    {"lora", "base"},
    {"lora_gqa", "base_gqa"},
    {"lora_default_init", "base"},
    {"rslora", "base"},
    {"lora_all_linear_patterns", "base"},
    {"lora_regex_layers", "base"},
    {"lora_modules_to_save", "base"},
    {"lora_embedding", "base"},
    {"dora", "base"},
    {"dora_embedding", "base"},
    {"ia3", "base"},
};

}  // namespace

TEST_CASE("the base model's logits, hidden states and loss equal transformers'", "[parity]") {
  for (const std::string name : {"base", "base_gqa"}) {
    INFO(name);
    const torch::NoGradGuard no_grad;
    const auto expected = io::load_safetensors(reference() / name / "expected.safetensors");
    const Batch batch = fixture_batch();
    auto model = load_base(name);
    CHECK(largest_difference(model->forward(batch), expected.at("logits")) < 2e-5);
    CHECK(largest_difference(model->hidden(batch), expected.at("hidden.2")) < 2e-5);
    const double loss = nn::causal_lm_loss_sum(*model, batch).item<double>() / static_cast<double>(batch.num_targets);
    CHECK(std::abs(loss - expected_json(name).at("loss").get<double>()) < 2e-5);
  }
}

TEST_CASE("right padding needs no mask: real positions do not see it", "[parity]") {
  const torch::NoGradGuard no_grad;
  auto model = load_base("base_gqa");
  Batch batch = fixture_batch();
  const at::Tensor with_mask = model->forward(batch);
  batch.attention_mask_BS = at::Tensor();
  const at::Tensor without = model->forward(batch);
  CHECK(largest_difference(with_mask[0], without[0]) < 2e-6);
  CHECK(largest_difference(with_mask[1].slice(0, 0, 9), without[1].slice(0, 0, 9)) < 2e-6);
}

TEST_CASE("full fine-tuning: gradients, step losses and weights equal transformers'", "[parity]") {
  const Batch batch = fixture_batch();
  auto model = load_base("base");
  train_all(*model);
  model->train();
  (nn::causal_lm_loss_sum(*model, batch) / batch.num_targets).backward();
  const auto gradients = io::load_safetensors(reference() / "full_ft/grads.safetensors");
  std::vector<std::pair<std::string, at::Tensor>> parameters;
  for (const auto& parameter : model->named_parameters()) {
    INFO(parameter.key());
    parameters.emplace_back(parameter.key(), parameter.value());
    CHECK(largest_difference(parameter.value().grad(), gradients.at("grad." + parameter.key())) < 2e-5);
    parameter.value().mutable_grad() = at::Tensor();
  }
  CHECK(parameters.size() == gradients.size());

  const auto info = expected_json("full_ft");
  auto state = make_state({}, parameters, 1e-3);
  for (const auto& loss : info.at("step_losses")) {
    CHECK(std::abs(train::train_step(*model, {&batch, 1}, state).loss - loss.get<double>()) < 2e-4);
  }
  const auto trained = model->named_parameters();
  for (const auto& [name, tensor] : io::load_safetensors(reference() / "full_ft/final.safetensors")) {
    INFO(name);
    CHECK(largest_difference(trained[name], tensor) < 2e-3);
  }
}

TEST_CASE("adapters: logits, gradients, ten steps and weights equal PEFT's", "[parity]") {
  for (const auto& [name, base] : kCases) check_case(name, base, {});
}

TEST_CASE("the numbers hold on the plain path and with each optimisation off alone", "[parity]") {
  std::vector<std::pair<std::string, nn::FastPaths>> paths = {{"all on", {}}, {"all off", nn::FastPaths::none()}};
  for (const auto& name : nn::FastPaths::names()) {
    paths.push_back({name, {}});
    bool& chosen = paths.back().second.at(name);
    chosen = !chosen;
  }
  for (const auto& [switched, fast] : paths) {
    INFO("switched: " << switched);
    for (const auto& [name, base] : kCases) {
      if (name == "lora_all_linear_patterns" || name == "lora_gqa" || name == "lora_modules_to_save" || name == "dora" ||
          name == "ia3") {
        check_case(name, base, {fast, /*masked=*/false});
      }
    }
  }
}

TEST_CASE("trained adapters load and merge with PEFT's numbers", "[parity]") {
  for (const auto& [name, base] : kCases) check_final(name, base);
}

TEST_CASE("with B = 0 the output is the base model's and A has no gradient", "[parity]") {
  const Batch batch = fixture_batch();
  auto model = load_base("base");
  const at::Tensor base_logits = model->forward(batch);
  const auto adapters = load_adapter(*model, reference() / "lora_default_init/init");
  freeze_base(*model, adapters);
  CHECK(largest_difference(model->forward(batch), base_logits) == 0);
  nn::causal_lm_loss_sum(*model, batch).backward();
  for (const auto& [name, tensor] : adapters.named_parameters()) {
    if (name.ends_with("lora_A")) CHECK(tensor.grad().abs().max().item<double>() == 0);
  }
}

TEST_CASE("fp32 adapters on a bf16 base come near PEFT's numbers", "[parity]") {
  const auto expected = io::load_safetensors(reference() / "lora_bf16_base/expected.safetensors");
  const Batch batch = fixture_batch();
  auto model = load_base("base", at::kBFloat16);
  model->fast_paths.release_plain = GENERATE(false, true);
  model->fast_paths.packed_weights = GENERATE(false, true);
  const auto adapters = load_adapter(*model, reference() / "lora/final");
  freeze_base(*model, adapters);
  model->eval();
  const at::Tensor logits = model->forward(batch);
  const double scale = expected.at("logits").abs().max().item<double>();
  CHECK(largest_difference(logits, expected.at("logits")) < 0.03 * scale);
  const at::Tensor loss = nn::causal_lm_loss_sum(*model, batch) / batch.num_targets;
  CHECK(std::abs(loss.item<double>() - expected_json("lora_bf16_base").at("loss").get<double>()) < 0.02);
  loss.backward();
  for (const auto& [name, tensor] : adapters.named_parameters()) {
    INFO(name);
    CHECK(tensor.scalar_type() == at::kFloat);
    const at::Tensor wanted = expected.at("grad." + file_name(name)).flatten().to(at::kFloat);
    const double cosine = at::cosine_similarity(tensor.grad().flatten(), wanted, 0).item<double>();
    CHECK(cosine > 0.995);
  }
}

TEST_CASE("several adapters: each, both, and none give PEFT's logits", "[parity]") {
  const torch::NoGradGuard no_grad;
  const auto expected = io::load_safetensors(reference() / "multi_adapter/expected.safetensors");
  const Batch batch = fixture_batch();
  auto model = load_base("base");
  load_adapter(*model, reference() / "multi_adapter/a", "a");
  AdapterSet b = load_adapter(*model, reference() / "multi_adapter/b", "b");
  model->eval();
  for (const std::vector<std::string>& active : {std::vector<std::string>{"a"}, {"b"}, {"a", "b"}}) {
    set_active_adapters(*model, active);
    std::string key = "logits.active_";
    for (const auto& name : active) key += name;
    INFO(key);
    CHECK(largest_difference(model->forward(batch), expected.at(key)) < 2e-5);
  }
  b.set_enabled(false);
  CHECK(largest_difference(model->forward(batch), expected.at("logits.disabled")) < 2e-5);
}

TEST_CASE("a saved adapter is PEFT's file: same names, shapes, bytes and configuration", "[parity]") {
  for (const auto& [name, base] : kCases) {
    INFO(name);
    auto model = load_base(base);
    const auto adapters = load_adapter(*model, reference() / name / "init");
    const auto ours = adapter_to_files(adapters);
    const auto theirs = io::load_safetensors(reference() / name / "init/adapter_model.safetensors");
    REQUIRE(ours.tensors.size() == theirs.size());
    for (const auto& [key, tensor] : theirs) {
      INFO(key);
      REQUIRE(ours.tensors.contains(key));
      CHECK(at::equal(ours.tensors.at(key), tensor));
    }
  }
}
