// Trainable tokens: the same numbers as Hugging Face PEFT, on the fixtures' base and on the same with a tied head.
// Tolerances as in peft_parity_test.cpp.
#include <filesystem>

#include "lora/adapters/adapter_io.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "lora/io/safetensors.h"
#include "lora/nn/loss.h"
#include "parity/peft_fixture.h"
#include "support.h"

using namespace lora;
using namespace lora::testing::peft;

namespace {

/// The base with a config that ties the head, and without the head that it stores.
std::shared_ptr<llama::LlamaForCausalLMImpl> load_tied(at::ScalarType dtype = at::kFloat) {
  const testing::ScratchFolder folder;
  std::filesystem::copy(reference() / "base", folder.path(),
                        std::filesystem::copy_options::recursive | std::filesystem::copy_options::overwrite_existing);
  auto config = formats::parse_json(read_file(reference() / "base/config.json"), "config.json");
  config["tie_word_embeddings"] = true;
  folder.write("config.json", config.dump());
  auto tensors = io::load_safetensors(folder / "model.safetensors");
  tensors.erase("lm_head.weight");
  io::save_safetensors(folder / "model.safetensors", io::NamedTensors(tensors.begin(), tensors.end()));
  return llama::load(folder.path(), {.device = at::kCPU, .dtype = dtype});
}

std::shared_ptr<llama::LlamaForCausalLMImpl> base_of(const std::string& name) {
  return name.ends_with("_tied") ? load_tied() : load_base("base");
}

/// "model.embed_tokens.default.trainable_tokens_delta" -> PEFT's name of the parameter.
std::string file_name(const std::string& name, bool alone) {
  constexpr std::string_view kAdapter = ".default.";
  const auto adapter = name.find(kAdapter);
  const std::string path = "base_model.model." + name.substr(0, adapter), parameter = name.substr(adapter + kAdapter.size());
  if (parameter != "trainable_tokens_delta") return path + "." + parameter + ".weight";
  return path + (alone ? "." : ".token_adapter.") + parameter;
}

const std::vector<std::string> kCases = {"tokens_lora", "tokens_lora_tied", "tokens_alone", "tokens_alone_tied",
                                         "tokens_by_module"};

}  // namespace

TEST_CASE("trainable tokens train as in PEFT", "[parity][tokens]") {
  const std::string name = GENERATE(from_range(kCases));
  const bool masked = GENERATE(true, false);
  INFO(name << (masked ? ", masked" : ", no mask"));
  const auto expected = io::load_safetensors(reference() / name / "expected.safetensors");
  const auto info = expected_json(name);
  Batch batch = fixture_batch();
  const at::Tensor is_real_BS1 = batch.attention_mask_BS.unsqueeze(-1);
  if (!masked) batch.attention_mask_BS = at::Tensor();
  auto model = base_of(name);
  const auto adapters = load_adapter(*model, reference() / name / "init");
  freeze_base(*model, adapters);
  model->train();

  CHECK(largest_difference(model->forward(batch) * is_real_BS1, expected.at("logits") * is_real_BS1) < 2e-5);
  const at::Tensor loss = nn::causal_lm_loss_sum(*model, batch) / batch.num_targets;
  CHECK(std::abs(loss.item<double>() - info.at("loss").get<double>()) < 2e-5);
  loss.backward();
  for (const auto& [parameter, tensor] : adapters.named_parameters()) {
    INFO(parameter);
    REQUIRE(tensor.grad().defined());
    CHECK(tensor.scalar_type() == at::kFloat);
    CHECK(largest_difference(tensor.grad(),
                             expected.at("grad." + file_name(parameter, name.find("alone") != std::string::npos))) < 2e-5);
    tensor.mutable_grad() = at::Tensor();
  }
  CHECK(adapters.named_parameters().size() == info.at("trainable_order").size());

  auto state = make_state(adapters, adapters.named_parameters(), 5e-3);
  for (const auto& step_loss : info.at("step_losses")) {
    CHECK(std::abs(train::train_step(*model, {&batch, 1}, state).loss - step_loss.get<double>()) < 2e-4);
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

TEST_CASE("PEFT's trained tokens give its logits here, merged too, and unmerging gives the base back", "[parity][tokens]") {
  const std::string name = GENERATE(from_range(kCases));
  INFO(name);
  const torch::NoGradGuard no_grad;
  const auto expected = io::load_safetensors(reference() / name / "expected.safetensors");
  const Batch batch = fixture_batch();
  auto model = base_of(name);
  const at::Tensor table = model->input_embeddings().clone(), head = model->lm_head->weight.clone();
  model->eval();
  const at::Tensor base_logits = model->forward(batch);
  AdapterSet adapters = load_adapter(*model, reference() / name / "final");
  model->eval();
  const at::Tensor logits = model->forward(batch);
  CHECK(largest_difference(logits, expected.at("final_logits")) < 2e-5);
  adapters.merge();
  CHECK(largest_difference(model->forward(batch), logits) < 1e-5);
  CHECK_FALSE(at::equal(model->input_embeddings(), table));
  adapters.unmerge();
  CHECK(at::equal(model->input_embeddings(), table));
  CHECK(at::equal(model->lm_head->weight, head));
  CHECK(largest_difference(model->forward(batch), logits) < 1e-5);
  adapters.set_enabled(false);
  CHECK(largest_difference(model->forward(batch), base_logits) < 1e-5);  // taking LoRA out of a weight is not exact
}

TEST_CASE("configs of trainable tokens are PEFT's", "[parity][tokens]") {
  for (const auto& name : kCases) {
    INFO(name);
    auto model = base_of(name);
    const auto files = adapter_to_files(load_adapter(*model, reference() / name / "final"));
    auto ours = formats::parse_json(formats::write_adapter_config(files.config), "ours");
    auto theirs = formats::parse_json(read_file(reference() / name / "final/adapter_config.json"), "theirs");
    for (auto* config : {&ours, &theirs}) config->erase("base_model_name_or_path");
    CHECK(ours == theirs);
  }
}

TEST_CASE("tokens on a bf16 base train in fp32 and are rounded in the forward pass", "[parity][tokens]") {
  auto model = load_tied(at::kBFloat16);
  const auto adapters = inject(*model, LoraOptions{.rank = 2, .token_indices = std::vector<int64_t>{5, 7}});
  freeze_base(*model, adapters);
  const at::Tensor rows = adapters.slots()[adapters.slots().size() - 2].adapter->named_parameters()["trainable_tokens_delta"];
  CHECK(rows.scalar_type() == at::kFloat);
  {
    const torch::NoGradGuard no_grad;
    rows.mul_(1 + 1e-4);  // less than bf16 tells apart
    const at::Tensor ids = at::tensor({5, 6, 7}, at::kLong);
    CHECK(at::equal(model->model->embed_tokens->forward(ids), model->input_embeddings().index_select(0, ids)));
  }
}
