// AdaLoRA, PiSSA, OLoRA and the methods with virtual tokens: the same numbers as Hugging Face PEFT. Tolerances as in
// peft_parity_test.cpp; budgets and masks exact.
#include "lora/adapters/adapter_io.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "lora/nn/loss.h"
#include "lora/train/evaluate.h"
#include "parity/peft_fixture.h"
#include "support.h"

using namespace lora;
using namespace lora::testing::peft;
using Tensors = std::map<std::string, at::Tensor>;

namespace {

Tensors expected_tensors(const std::string& name) { return io::load_safetensors(reference() / name / "expected.safetensors"); }

AdaLoraOptions adalora_options(const formats::Json& config) {
  AdaLoraOptions options;
  options.init_rank = config.at("init_r");
  options.target_rank = config.at("target_r");
  options.initial_steps = config.at("tinit");
  options.final_steps = config.at("tfinal");
  options.interval = config.at("deltaT");
  options.beta1 = config.at("beta1");
  options.beta2 = config.at("beta2");
  options.orth_reg_weight = config.at("orth_reg_weight");
  options.total_steps = config.at("total_step");
  options.alpha = config.at("lora_alpha");
  return options;
}

/// A fresh AdaLoRA adapter with the fixture's values at the start.
AdapterSet adalora_of_fixture(llama::LlamaForCausalLMImpl& model) {
  const auto adapters = inject(model, adalora_options(expected_json("adalora").at("config")));
  load_adapter_tensors(adapters, io::load_safetensors(reference() / "adalora/init/adapter_model.safetensors"));
  freeze_base(model, adapters);
  model.train();
  return adapters;
}

std::map<std::string, std::vector<bool>> kept_by_name(const RankAllocator& allocator) {
  std::map<std::string, std::vector<bool>> kept;
  const auto paths = allocator.paths();
  for (size_t i = 0; i < paths.size(); ++i) kept[paths[i] + ".lora_E"] = (*allocator.kept())[i];
  return kept;
}

at::Tensor parameter_of(const AdapterSet& adapters, const std::string& path, const std::string& name) {
  for (const auto& slot : adapters.slots()) {
    if (slot.path == path) return slot.adapter->named_parameters()[name];
  }
  FAIL("no slot at " << path);
  return {};
}

/// "t5.model.layers.0.self_attn.q_proj.lora_E" -> the tensor of that name now.
at::Tensor named(const AdapterSet& adapters, const std::string& name) {
  const auto dot = name.rfind('.');
  return parameter_of(adapters, name.substr(0, dot), name.substr(dot + 1));
}

struct PromptCase {
  std::string name, base;
  MethodOptions options;
};

std::vector<PromptCase> prompt_cases() {
  return {{"prefix", "base", PrefixOptions{.num_virtual_tokens = 5}},
          {"prefix_gqa", "base_gqa", PrefixOptions{.num_virtual_tokens = 5}},
          {"prefix_projection", "base", PrefixOptions{.num_virtual_tokens = 5, .projection = true, .encoder_hidden_size = 32}},
          {"prompt", "base", PromptOptions{.num_virtual_tokens = 5}},
          {"ptuning_mlp", "base", PTuningOptions{.num_virtual_tokens = 5, .encoder_hidden_size = 32}},
          {"ptuning_lstm", "base",
           PTuningOptions{.num_virtual_tokens = 5, .encoder = "LSTM", .encoder_hidden_size = 16, .encoder_num_layers = 1}}};
}

/// PEFT's logits have places for embedded virtual tokens, ours have not.
at::Tensor of_real_tokens(const at::Tensor& logits, int64_t length) { return logits.slice(1, logits.size(1) - length); }

/// Logits at padding mean nothing.
void check_logits(llama::LlamaForCausalLMImpl& model, const Batch& batch, const at::Tensor& expected, bool masked) {
  Batch used = batch;
  if (!masked) used.attention_mask_BS = at::Tensor();
  const at::Tensor is_real_BS1 = batch.attention_mask_BS.unsqueeze(-1);
  CHECK(largest_difference(model.forward(used) * is_real_BS1,
                           of_real_tokens(expected, batch.input_ids_BS.size(1)) * is_real_BS1) < 2e-5);
}

void check_prompt_case(const PromptCase& one, bool masked, nn::Recompute recompute) {
  INFO(one.name << (masked ? ", masked" : ", no mask") << ", recompute " << static_cast<int>(recompute));
  const auto expected = expected_tensors(one.name);
  const auto info = expected_json(one.name);
  Batch batch = fixture_batch();
  auto model = load_base(one.base);
  model->recompute = recompute;
  const auto adapters = inject(*model, one.options);
  freeze_base(*model, adapters);
  model->train();
  {
    const torch::NoGradGuard no_grad;
    for (const auto& [name, tensor] : adapters.prompt()->named_parameters().pairs()) {
      INFO(name);
      at::Tensor(tensor).copy_(expected.at("train.prompt_encoder.default." + name));
    }
  }
  check_logits(*model, batch, expected.at("logits"), masked);
  if (!masked) batch.attention_mask_BS = at::Tensor();
  const at::Tensor loss = nn::causal_lm_loss_sum(*model, batch) / batch.num_targets;
  CHECK(std::abs(loss.item<double>() - info.at("loss").get<double>()) < 2e-5);
  loss.backward();
  for (const auto& [name, tensor] : adapters.named_parameters()) {
    INFO(name);
    REQUIRE(tensor.grad().defined());
    CHECK(largest_difference(tensor.grad(), expected.at("grad." + name)) < 2e-5);
    tensor.mutable_grad() = at::Tensor();
  }
  auto state = make_state(adapters, adapters.named_parameters(), 5e-3);
  for (const auto& step_loss : info.at("step_losses")) {
    CHECK(std::abs(train::train_step(*model, {&batch, 1}, state).loss - step_loss.get<double>()) < 2e-4);
  }
  const auto files = adapter_to_files(adapters);
  REQUIRE(files.tensors.size() == 1);
  const auto final = io::load_safetensors(reference() / one.name / "final/adapter_model.safetensors");
  CHECK(largest_difference(files.tensors.at("prompt_embeddings"), final.at("prompt_embeddings")) < 2e-3);
}

}  // namespace

TEST_CASE("AdaLoRA: logits, gradients, and every step's loss, budget, ranks and E equal PEFT's", "[parity]") {
  const auto expected = expected_tensors("adalora");
  const auto info = expected_json("adalora");
  const Batch batch = fixture_batch();
  auto model = load_base("base");
  const auto adapters = adalora_of_fixture(*model);
  CHECK(largest_difference(model->forward(batch), expected.at("logits")) < 2e-5);
  const at::Tensor own = nn::causal_lm_loss_sum(*model, batch) / batch.num_targets;
  CHECK(std::abs(own.item<double>() - info.at("loss_without_orth").get<double>()) < 2e-5);
  const at::Tensor loss = own + adapters.regularizer();
  CHECK(std::abs(loss.item<double>() - info.at("loss").get<double>()) < 2e-5);
  loss.backward();
  for (const auto& [name, tensor] : expected) {
    if (!name.starts_with("grad.")) continue;
    INFO(name);
    const at::Tensor parameter = named(adapters, name.substr(std::string("grad.base_model.model.").size()));
    CHECK(largest_difference(parameter.grad(), tensor) < 2e-5);
  }
  for (auto& parameter : adapters.parameters()) parameter.mutable_grad() = at::Tensor();

  auto state = make_state(adapters, adapters.named_parameters(), 5e-3);
  for (const auto& step : info.at("steps")) {
    const auto result = train::train_step(*model, {&batch, 1}, state);
    INFO("step " << result.step);
    CHECK(std::abs(result.loss + *result.reg_loss - step.at("loss").get<double>()) < 2e-4);
    CHECK(result.rank_budget == step.at("budget").get<int64_t>());
    const auto& kept = adapters.allocator()->kept();
    if (step.at("rank_pattern").is_null()) {
      CHECK_FALSE(kept);
      CHECK(result.ranks.empty());
    } else {
      CHECK(kept_by_name(*adapters.allocator()) == step.at("rank_pattern").get<std::map<std::string, std::vector<bool>>>());
    }
    const std::string now = "t" + std::to_string(result.step) + ".model.";
    for (const auto& [name, tensor] : expected) {
      if (!name.starts_with(now)) continue;
      INFO(name);
      CHECK(largest_difference(named(adapters, name.substr(now.size() - std::string("model.").size())), tensor) < 2e-3);
    }
    if (result.step != 5) continue;
    const auto averages = adapters.allocator()->state();
    for (const auto& [prefix, ours] : {std::pair{"t5.ipt.", "importance."}, {"t5.unc.", "uncertainty."}}) {
      for (const auto& [name, tensor] : expected) {
        if (!name.starts_with(prefix)) continue;
        INFO(name);
        CHECK(largest_difference(averages.at(ours + name.substr(std::string(prefix).size())), tensor) < 2e-5);
      }
    }
  }
  const auto files = adapter_to_files(adapters);
  const auto final = io::load_safetensors(reference() / "adalora/final/adapter_model.safetensors");
  REQUIRE(files.tensors.size() == final.size());
  for (const auto& [name, tensor] : final) {
    INFO(name);
    REQUIRE(files.tensors.contains(name));
    CHECK(largest_difference(files.tensors.at(name), tensor) < 2e-3);
  }
  const std::string config = read_file(reference() / "adalora/final/adapter_config.json");
  auto ours = std::get<formats::PeftAdaLoraConfig>(files.config);
  ours.lora.base_model_name_or_path = "base";
  CHECK(formats::Json::parse(formats::write_adapter_config(ours)) == formats::Json::parse(config));
}

TEST_CASE("a trained AdaLoRA adapter, ranks of 0 included, loads and merges with PEFT's numbers", "[parity]") {
  const torch::NoGradGuard no_grad;
  const auto expected = expected_tensors("adalora");
  const Batch batch = fixture_batch();
  for (const auto& fast : {nn::FastPaths{}, nn::FastPaths::none()}) {
    auto model = load_base("base");
    model->fast_paths = fast;
    AdapterSet adapters = load_adapter(*model, reference() / "adalora/final");
    model->eval();
    const at::Tensor logits = model->forward(batch);
    CHECK(largest_difference(logits, expected.at("final_logits")) < 2e-5);
    CHECK_FALSE(adapters.allocator());
    adapters.merge();
    CHECK(largest_difference(model->forward(batch), logits) < 1e-5);
    adapters.unmerge();
    const auto files = adapter_to_files(adapters);
    for (const auto& [name, tensor] : io::load_safetensors(reference() / "adalora/final/adapter_model.safetensors")) {
      CHECK(at::equal(files.tensors.at(name), tensor));
    }
  }
}

TEST_CASE("an AdaLoRA run that is resumed equals one that is not", "[parity]") {
  const Batch batch = fixture_batch();
  const auto steps = [&](llama::LlamaForCausalLMImpl& model, train::StepState& state, int64_t count) {
    std::vector<double> losses;
    for (int64_t i = 0; i < count; ++i) losses.push_back(train::train_step(model, {&batch, 1}, state).loss);
    return losses;
  };
  auto whole = load_base("base");
  const auto adapters = adalora_of_fixture(*whole);
  auto state = make_state(adapters, adapters.named_parameters(), 5e-3);
  const int64_t before = GENERATE(2, 7, 12, 14);
  steps(*whole, state, before);
  const auto saved = adapters.training_state();
  std::map<std::string, at::Tensor> copy, moments;
  for (const auto& [name, tensor] : saved) copy[name] = tensor.detach().clone();
  for (const auto& [name, tensor] : state.optimizer->state()) moments[name] = tensor.clone();
  const auto wanted = steps(*whole, state, 16 - before);

  auto resumed = load_base("base");
  AdapterSet again = adalora_of_fixture(*resumed);
  auto later = make_state(again, again.named_parameters(), 5e-3);
  again.load_training_state(copy);
  later.optimizer->load_state(moments);
  later.step = before;
  CHECK(steps(*resumed, later, 16 - before) == wanted);
  CHECK(*again.allocator()->kept() == *adapters.allocator()->kept());
}

TEST_CASE("PiSSA and OLoRA start from PEFT's factors, leave the output, and are saved as plain LoRA", "[parity]") {
  const Batch batch = fixture_batch();
  for (const std::string init : {"pissa", "olora"}) {
    INFO(init);
    const auto expected = expected_tensors(init);
    auto model = load_base("base");
    const at::Tensor base_logits = model->forward(batch).detach();
    const auto adapters =
        inject(*model, LoraOptions{.rank = 4, .alpha = 8, .init = init, .targets = std::vector<std::string>{"q_proj"}});
    CHECK(largest_difference(model->forward(batch), expected.at("logits")) < 2e-5);
    CHECK(largest_difference(model->forward(batch), base_logits) < 2e-5);
    for (size_t i = 0; i < 2; ++i) {
      const auto& slot = adapters.slots()[i];
      const auto& linear = dynamic_cast<const LoraLinear&>(*slot.adapter);
      const at::Tensor delta = linear.lora_B.mm(linear.lora_A) * linear.scale();
      const std::string layer = ".layers." + std::to_string(i) + ".q_proj";
      CHECK(largest_difference(delta, expected.at("delta" + layer)) < 2e-5);
      CHECK(largest_difference(slot.linear->weight - delta, expected.at("residual" + layer)) < 2e-5);
    }
    freeze_base(*model, adapters);
    model->train();
    auto state = make_state(adapters, adapters.named_parameters(), 5e-3);
    for (int i = 0; i < 3; ++i) train::train_step(*model, {&batch, 1}, state);
    const auto files = adapter_to_files(adapters);
    const auto& config = std::get<formats::PeftLoraConfig>(files.config);
    CHECK(config.init_lora_weights == "true");
    CHECK(config.r == 8);
    CHECK(config.lora_alpha == 16);
    auto other = load_base("base");
    adapter_from_files(*other, files, "default");
    CHECK(largest_difference(other->forward(batch), model->forward(batch)) < 1e-5);
    CHECK(largest_difference(other->forward(batch), base_logits) > 1e-2);
  }
}

TEST_CASE("what PEFT saves unconverted after PiSSA and OLoRA counts from the start that the base has", "[parity]") {
  const Batch batch = fixture_batch();
  for (const std::string init : {"pissa", "olora"}) {
    INFO(init);
    auto model = load_base("base");
    const auto adapters = load_adapter(*model, reference() / init / "init");
    CHECK(largest_difference(model->forward(batch), expected_tensors(init).at("logits")) < 2e-5);
    const auto& linear = dynamic_cast<const LoraLinear&>(*adapters.slots()[0].adapter);
    const at::Tensor delta = linear.lora_B.mm(linear.lora_A) * linear.scale();
    CHECK(largest_difference(delta, expected_tensors(init).at("delta.layers.0.q_proj")) < 2e-5);
    CHECK(std::get<formats::PeftLoraConfig>(adapter_to_files(adapters).config).init_lora_weights == "true");
  }
}

TEST_CASE("virtual tokens: logits, gradients and ten steps equal PEFT's", "[parity]") {
  for (const auto& one : prompt_cases()) {
    for (const auto recompute : {nn::Recompute::kNone, nn::Recompute::kSelective, nn::Recompute::kFull}) {
      check_prompt_case(one, /*masked=*/true, recompute);
      check_prompt_case(one, /*masked=*/false, recompute);
    }
  }
}

TEST_CASE("trained virtual tokens load with PEFT's numbers, and are written again as they were", "[parity]") {
  const torch::NoGradGuard no_grad;
  const Batch batch = fixture_batch();
  for (const auto& one : prompt_cases()) {
    INFO(one.name);
    auto model = load_base(one.base);
    AdapterSet adapters = load_adapter(*model, reference() / one.name / "final");
    model->eval();
    check_logits(*model, batch, expected_tensors(one.name).at("final_logits"), /*masked=*/true);
    check_logits(*model, batch, expected_tensors(one.name).at("final_logits"), /*masked=*/false);
    const auto files = adapter_to_files(adapters);
    const auto theirs = io::load_safetensors(reference() / one.name / "final/adapter_model.safetensors");
    CHECK(at::equal(files.tensors.at("prompt_embeddings"), theirs.at("prompt_embeddings")));
    const std::string config = read_file(reference() / one.name / "final/adapter_config.json");
    CHECK(formats::write_adapter_config(files.config) == config + "\n");
    CHECK_THROWS_AS(adapters.merge(), ConfigError);
    adapters.set_enabled(false);
    auto plain = load_base(one.base);
    CHECK(largest_difference(model->forward(batch), plain->forward(batch)) == 0);
  }
}

TEST_CASE("with a cache virtual tokens stand before the first token once", "[parity]") {
  const torch::NoGradGuard no_grad;
  Batch batch = fixture_batch();
  batch.attention_mask_BS = at::Tensor();
  for (const auto& one : prompt_cases()) {
    INFO(one.name);
    auto model = load_base(one.base);
    load_adapter(*model, reference() / one.name / "final");
    model->eval();
    const at::Tensor whole = model->forward(batch);
    nn::KvCache cache(model->num_layers());
    std::vector<at::Tensor> parts;
    for (const auto& [begin, end] : {std::pair{0, 5}, {5, 6}, {6, 12}}) {
      Batch part;
      part.input_ids_BS = batch.input_ids_BS.slice(1, begin, end);
      parts.push_back(model->forward(part, &cache));
    }
    CHECK(cache.length() == 12);
    CHECK(cache.virtual_tokens() == 5);
    CHECK(largest_difference(at::cat(parts, 1), whole) < 2e-5);
    CHECK(model->longest_row() == model->max_positions() - 5);
  }
}

TEST_CASE("packed rows with virtual tokens equal the rows alone", "[parity]") {
  const Batch batch = fixture_batch();
  for (const auto& one : prompt_cases()) {
    INFO(one.name);
    auto model = load_base(one.base);
    const auto adapters = inject(*model, one.options);
    freeze_base(*model, adapters);
    Batch packed;
    packed.segment_lengths = {12, 9};
    packed.input_ids_BS = at::cat({batch.input_ids_BS[0], batch.input_ids_BS[1].slice(0, 0, 9)}).unsqueeze(0);
    packed.labels_BS = at::cat({batch.labels_BS[0], batch.labels_BS[1].slice(0, 0, 9)}).unsqueeze(0).clone();
    packed.labels_BS[0][12] = kIgnoreLabel;
    const at::Tensor states = model->hidden(packed);
    Batch plain = batch;
    plain.attention_mask_BS = at::Tensor();
    const at::Tensor wanted = model->hidden(plain);
    CHECK(largest_difference(states[0].slice(0, 0, 12), wanted[0]) < 2e-6);
    CHECK(largest_difference(states[0].slice(0, 12), wanted[1].slice(0, 0, 9)) < 2e-6);
    std::vector<at::Tensor> gradients;
    for (const Batch& rows : {packed, plain}) {
      nn::causal_lm_loss_sum(*model, rows).backward();
      gradients.push_back(adapters.parameters().front().grad().clone());
      for (auto& parameter : adapters.parameters()) parameter.mutable_grad() = at::Tensor();
    }
    CHECK(largest_difference(gradients[0], gradients[1]) < 2e-5);
  }
}

TEST_CASE("methods combine on one model: each adds its part, and each can be saved and loaded alone", "[parity]") {
  const torch::NoGradGuard no_grad;
  at::manual_seed(9);
  Batch batch = fixture_batch();
  batch.attention_mask_BS = at::Tensor();
  auto model = load_base("base");
  const auto prefix = inject(*model, PrefixOptions{.num_virtual_tokens = 3}, "prefix");
  const auto parallel = inject(*model, bottleneck_preset("parallel"), "parallel");
  const auto low_rank = inject(*model, LoraOptions{.rank = 2, .alpha = 4, .init = "false"}, "low_rank");
  for (auto& parameter : parallel.parameters()) parameter.normal_(0, 0.3);
  model->eval();
  std::map<std::string, at::Tensor> logits;
  for (const std::vector<std::string>& active :
       {std::vector<std::string>{"prefix"}, {"parallel"}, {"low_rank"}, {"prefix", "parallel", "low_rank"}}) {
    set_active_adapters(*model, active);
    logits[active.size() == 1 ? active[0] : "all"] = model->forward(batch);
  }
  for (const auto& set : {prefix, parallel, low_rank}) {
    INFO(set.name());
    CHECK(largest_difference(logits.at(set.name()), logits.at("all")) > 1e-2);
    const testing::ScratchFolder folder;
    save_adapter(set, folder.path() / "adapter");
    auto other = load_base("base");
    load_adapter(*other, folder.path() / "adapter");
    other->eval();
    CHECK(largest_difference(other->forward(batch), logits.at(set.name())) == 0);
  }
  auto both = load_base("base");
  for (const auto& set : {prefix, parallel, low_rank}) adapter_from_files(*both, adapter_to_files(set), set.name());
  set_active_adapters(*both, {"prefix", "parallel", "low_rank"});
  both->eval();
  CHECK(largest_difference(both->forward(batch), logits.at("all")) == 0);
  CHECK(freeze_base(*both, adapters_of(*both)).trainable > 0);
}

TEST_CASE("adapters that claim one place are refused, with the active ones as they were", "[parity]") {
  auto model = load_base("base");
  inject(*model, PrefixOptions{.num_virtual_tokens = 3}, "one");
  inject(*model, PrefixOptions{.num_virtual_tokens = 4}, "two");
  inject(*model, PromptOptions{.num_virtual_tokens = 4}, "prompt");
  inject(*model, Ia3Options{}, "scale");
  inject(*model, LoraOptions{.targets = std::vector<std::string>{"v_proj"}}, "update");
  inject(*model, LoraOptions{.targets = std::vector<std::string>{"q_proj"}}, "elsewhere");
  CHECK_THROWS_AS(set_active_adapters(*model, {"one", "two"}), ConfigError);
  CHECK_THROWS_AS(set_active_adapters(*model, {"scale", "update"}), ConfigError);
  CHECK_THROWS_AS(set_active_adapters(*model, {"update", "scale"}), ConfigError);
  CHECK(active_adapters(*model) == std::vector<std::string>{"elsewhere"});
  set_active_adapters(*model, {"one", "prompt", "scale", "elsewhere"});
  CHECK(model->num_virtual_tokens() == 7);
}

TEST_CASE("bottleneck adapters train, resume under recomputation, and are AdapterHub's directories", "[parity]") {
  const Batch batch = fixture_batch();
  for (const std::string kind : {"houlsby", "pfeiffer", "parallel"}) {
    INFO(kind);
    std::vector<std::vector<double>> losses;
    for (const auto recompute : {nn::Recompute::kNone, nn::Recompute::kSelective, nn::Recompute::kFull}) {
      at::manual_seed(4);
      auto model = load_base("base");
      model->recompute = recompute;
      auto options = bottleneck_preset(kind);
      options.learn_scaling = true;
      const auto adapters = inject(*model, options);
      freeze_base(*model, adapters);
      model->train();
      auto state = make_state(adapters, adapters.named_parameters(), 5e-3);
      auto& run = losses.emplace_back();
      for (int i = 0; i < 4; ++i) run.push_back(train::train_step(*model, {&batch, 1}, state).loss);
      const auto files = adapter_to_files(adapters);
      const auto& config = std::get<formats::AdapterHubConfig>(files.config);
      CHECK(config.mh_adapter == (kind == "houlsby"));
      CHECK_FALSE(config.scaling);
      CHECK(files.tensors.contains("model.layers.0.output_adapters.adapters.default.adapter_down.0.weight"));
      CHECK(files.tensors.size() == (kind == "houlsby" ? 20u : 10u));
    }
    CHECK(losses[0] == losses[1]);
    CHECK(losses[0] == losses[2]);
    CHECK(losses[0].back() < losses[0].front());
  }
}
