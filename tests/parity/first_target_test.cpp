// Where virtual tokens stand before a row as embeddings, the last of them predicts the row's first token: PEFT's numbers, made by
// tests/reference/make_first_target_reference.py, and packed rows against rows alone.
#include "data/listed_rows.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/data/collate.h"
#include "lora/nn/loss.h"
#include "lora/train/evaluate.h"
#include "parity/peft_fixture.h"

using namespace lora;
using namespace lora::testing::peft;

namespace {

struct Method {
  std::string name;
  MethodOptions options;
  bool predicts;
};

std::vector<Method> methods() {
  return {{"prefix", PrefixOptions{.num_virtual_tokens = 5}, false},
          {"prompt", PromptOptions{.num_virtual_tokens = 5}, true},
          {"ptuning_mlp", PTuningOptions{.num_virtual_tokens = 5, .encoder_hidden_size = 32}, true},
          {"ptuning_lstm",
           PTuningOptions{.num_virtual_tokens = 5, .encoder = "LSTM", .encoder_hidden_size = 16, .encoder_num_layers = 1}, true}};
}

struct Setup {
  std::shared_ptr<llama::LlamaForCausalLMImpl> model = load_base("base");
  AdapterSet adapters;

  explicit Setup(const Method& method) : adapters(inject_method(*model, method.options)) {
    freeze_base(*model, adapters);
    model->train();
    const torch::NoGradGuard no_grad;
    const auto start = io::load_safetensors(reference() / method.name / "expected.safetensors");
    for (const auto& [name, tensor] : adapters.prompt()->named_parameters().pairs()) {
      at::Tensor(tensor).copy_(start.at("train.prompt_encoder.default." + name));
    }
  }
};

/// The fixtures' rows without padding, with the labels of the reference.
lora::testing::ListedRows rows() {
  const Batch batch = fixture_batch();
  const at::Tensor labels = io::load_safetensors(reference() / "first_target.safetensors").at("labels");
  lora::testing::ListedRows rows;
  for (int64_t b = 0; b < 2; ++b) {
    data::Example& row = rows.examples.emplace_back();
    for (int64_t i = 0; i < batch.attention_mask_BS[b].sum().item<int64_t>(); ++i) {
      row.input_ids.push_back(static_cast<int32_t>(batch.input_ids_BS[b][i].item<int64_t>()));
      row.labels.push_back(static_cast<int32_t>(labels[b][i].item<int64_t>()));
    }
    row.row = b + 1;
  }
  return rows;
}

enum class Form { kPadded, kPacked, kOneByOne };

std::vector<Batch> batches(const std::vector<data::Example>& examples, Form form) {
  std::vector<const data::Example*> pointers;
  for (const auto& example : examples) pointers.push_back(&example);
  if (form == Form::kPadded) return {data::collate(pointers, 0)};
  if (form == Form::kPacked) return {data::collate_packed(pointers, 0, 8)};
  std::vector<Batch> all;
  for (const auto* pointer : pointers) all.push_back(data::collate(std::vector{pointer}, 0));
  return all;
}

void check_against_peft(const Method& method, const std::string& kind, Form form, nn::Recompute recompute) {
  INFO(method.name << "." << kind << ", form " << static_cast<int>(form) << ", recompute " << static_cast<int>(recompute));
  const std::string file = "first_target.json";
  const auto wanted = formats::parse_json(read_file(reference() / file), file).at("cases").at(method.name + "." + kind);
  auto examples = rows().examples;
  if (kind == "single") examples.resize(1);
  const auto given = batches(examples, form);

  Setup setup(method);
  setup.model->recompute = recompute;
  Setup other(method);
  int64_t targets = 0;
  at::Tensor sum;
  for (const Batch& batch : given) {
    const at::Tensor part = nn::causal_lm_loss_sum(*other.model, batch);
    sum = sum.defined() ? sum + part : part;
    targets += other.model->num_targets(batch);
  }
  CHECK(targets == (kind == "single" ? 11 : 11 + 8) + (method.predicts ? 1 : 0));
  (sum / targets).backward();
  const auto gradients = io::load_safetensors(reference() / "first_target.safetensors");
  for (const auto& [name, tensor] : other.adapters.named_parameters()) {
    INFO(name);
    CHECK(largest_difference(tensor.grad(), gradients.at(method.name + "." + kind + "." + name)) < 2e-5);
  }

  auto state = make_state(setup.adapters, setup.adapters.named_parameters(), 5e-3);
  for (const auto& loss : wanted.at("step_losses")) {
    const auto result = train::train_step(*setup.model, given, state);
    CHECK(result.targets == targets);
    CHECK(std::abs(result.loss - loss.get<double>()) < 2e-4);
  }
  lora::testing::ListedRows listed;
  listed.examples = examples;
  for (const int64_t size : {1, 2}) {
    const auto result = train::evaluate(*setup.model, listed, size, at::kCPU, at::kFloat, /*pad_id=*/0);
    CHECK(result.targets == targets);
    CHECK(std::abs(result.loss - wanted.at("final_loss").get<double>()) < 2e-4);
  }
}

}  // namespace

TEST_CASE("the last virtual token predicts a row's first token, as in PEFT", "[parity]") {
  for (const auto& method : methods()) {
    for (const std::string kind : {"batch", "single"}) {
      for (const Form form : {Form::kPadded, Form::kPacked, Form::kOneByOne}) {
        check_against_peft(method, kind, form, nn::Recompute::kNone);
      }
      check_against_peft(method, kind, Form::kPadded, nn::Recompute::kFull);
    }
  }
}

TEST_CASE("a row of one token has a target behind virtual tokens, and none without", "[parity]") {
  const std::vector<data::Example> one = {{.input_ids = {7}, .labels = {7}, .row = 1}};
  const Batch batch = batches(one, Form::kPadded).front();
  for (const auto& method : methods()) {
    INFO(method.name);
    Setup setup(method);
    const at::Tensor loss = nn::causal_lm_loss_sum(*setup.model, batch);
    CHECK(loss.requires_grad());
    CHECK((loss.item<double>() > 0) == method.predicts);
    CHECK(setup.model->num_targets(batch) == (method.predicts ? 1 : 0));
    // Switched off, nothing predicts it.
    setup.adapters.set_enabled(false);
    CHECK(setup.model->num_targets(batch) == 0);
    CHECK(nn::causal_lm_loss_sum(*setup.model, batch).item<double>() == 0);
  }
}

TEST_CASE("without virtual tokens a packed row has no target where a sequence begins", "[parity]") {
  const torch::NoGradGuard no_grad;
  auto model = load_base("base");
  const auto examples = rows().examples;
  double alone = 0;
  for (const Batch& batch : batches(examples, Form::kOneByOne)) alone += nn::causal_lm_loss_sum(*model, batch).item<double>();
  const Batch packed = batches(examples, Form::kPacked).front();
  CHECK(model->num_targets(packed) == 19);
  CHECK(nn::causal_lm_loss_sum(*model, packed).item<double>() == Approx(alone).epsilon(1e-6));
}
