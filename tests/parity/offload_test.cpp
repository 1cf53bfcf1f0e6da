// A base that streams trains to the same bits as one that is held: losses, norms, adapters, evaluation.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/utils.h>

#include <bit>

#include "catch.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "lora/models/llama.h"
#include "lora/nn/loss.h"
#include "lora/ops/autocast.h"
#include "lora/train/nonfinite.h"
#include "lora/train/trainer.h"
#include "support.h"

using namespace lora;
using lora::testing::message_of;
using lora::testing::ScratchFolder;

namespace {

/// Wide enough that packed and plain products of bf16 differ in their last bits.
constexpr int64_t kWide = 512, kNarrow = 64;

/// Grouped heads, several shards.
void save_base(const Path& directory, bool tied, bool bias, DType dtype, int64_t width = kNarrow) {
  at::manual_seed(11);
  std::vector<std::pair<std::string, std::string>> fields = {{"vocab_size", "80"},
                                                             {"hidden_size", std::to_string(width)},
                                                             {"intermediate_size", std::to_string(width)},
                                                             {"num_hidden_layers", "3"},
                                                             {"num_attention_heads", "8"},
                                                             {"num_key_value_heads", "4"},
                                                             {"max_position_embeddings", "64"},
                                                             {"initializer_range", "0.05"}};
  if (tied) fields.emplace_back("tie_word_embeddings", "true");
  if (bias) fields.emplace_back("attention_bias", "true");
  llama::LlamaForCausalLMImpl model(llama::fresh_llama_config(std::nullopt, fields));
  llama::save(model, directory,
              {.dtype = dtype, .copy_tokenizer_from = std::nullopt, .shard_bytes = static_cast<uint64_t>(width * width) * 8});
}

/// Small products wait longer for threads than they compute. The bits are compared at any number of them.
struct OneThread {
  OneThread() { at::set_num_threads(1); }
  ~OneThread() { at::set_num_threads(before); }
  int before = at::get_num_threads();
};

struct Case {
  at::ScalarType dtype = at::kFloat, amp = at::kFloat;
  nn::FastPaths fast = {};
  nn::Recompute recompute = nn::Recompute::kNone;
  double dropout = 0;
  std::string bias = "none";
  std::vector<std::string> modules_to_save = {};
  FreezeRules rules = {};
  bool store = false;
};

Batch rows(int64_t first) {
  Batch batch;
  batch.input_ids_BS = (at::arange(2 * 48, at::kLong) * 7 + first).remainder(80).view({2, 48});
  batch.labels_BS = batch.input_ids_BS.clone();
  batch.labels_BS.slice(1, 0, 5).fill_(kIgnoreLabel);
  batch.num_tokens = batch.num_targets = 2 * 43;
  return batch;
}

double loss_without_gradients(llama::LlamaForCausalLMImpl& model, at::ScalarType amp) {
  const at::NoGradGuard no_grad;
  const AutocastGuard autocast(at::kCPU, amp);
  return nn::causal_lm_loss_sum(model, rows(3)).item<double>();
}

struct Outcome {
  std::vector<double> numbers;
  std::vector<std::pair<std::string, at::Tensor>> trained;
  int64_t streamed_layers = 0;
};

Outcome train(const Path& base, nn::Offload offload, const Case& one) {
  auto model = llama::load(base, {.device = at::kCPU, .dtype = one.dtype, .offload = offload});
  model->fast_paths = one.fast;
  model->recompute = one.recompute;
  if (one.store) model->activations = std::make_shared<nn::ActivationStore>(at::kCPU);
  at::manual_seed(5);
  LoraOptions options{.rank = 4, .alpha = 8, .dropout = one.dropout, .init = "false"};
  options.targets = std::vector<std::string>{"q_proj", "v_proj", "down_proj"};
  options.bias = one.bias;
  options.modules_to_save = one.modules_to_save;
  const auto adapters = inject(*model, options);
  freeze_base(*model, adapters, one.rules);

  Outcome outcome;
  outcome.numbers.push_back(loss_without_gradients(*model, one.amp));
  train::TrainerOptions training;
  training.steps = 2;
  training.learning_rate = 0.01;
  training.amp_dtype = one.amp;
  train::Trainer trainer(model, adapters, training);
  for (int64_t step = 0; step < 2; ++step) {
    const std::vector<Batch> micro_batches = {rows(step), rows(step + 20)};
    const auto result = trainer.step(micro_batches);
    outcome.numbers.insert(outcome.numbers.end(), {result.loss, result.grad_norm});
  }
  outcome.numbers.push_back(loss_without_gradients(*model, one.amp));
  outcome.trained = adapters.named_parameters();
  for (const auto& entry : model->named_parameters()) {
    if (entry.value().requires_grad()) outcome.trained.emplace_back(entry.key(), entry.value());
  }
  for (const auto& module : model->modules()) {
    const auto* linear = module->as<nn::LinearImpl>();
    if (linear != nullptr && linear->weight_is_streamed()) ++outcome.streamed_layers;
  }
  return outcome;
}

void check_same(const Path& base, const Case& one, int64_t streamed_layers = 21) {
  const auto expected = train(base, nn::Offload::kNone, one), found = train(base, nn::Offload::kDisk, one);
  CHECK(expected.streamed_layers == 0);
  CHECK(found.streamed_layers == streamed_layers);
  REQUIRE(found.numbers.size() == expected.numbers.size());
  for (size_t i = 0; i < found.numbers.size(); ++i) {
    CHECK(std::bit_cast<uint64_t>(found.numbers[i]) == std::bit_cast<uint64_t>(expected.numbers[i]));
  }
  REQUIRE(found.trained.size() == expected.trained.size());
  for (size_t i = 0; i < found.trained.size(); ++i) {
    INFO(found.trained[i].first);
    CHECK(at::equal(found.trained[i].second, expected.trained[i].second));
  }
}

}  // namespace

TEST_CASE("A streamed base: the same bits under every switch, recomputation and type", "[offload]") {
  const OneThread one_thread;
  const ScratchFolder folder;
  Case one;
  const auto type = GENERATE(0, 1, 2);
  save_base(folder.path(), false, false, DType::kF32, type == 0 ? kNarrow : kWide);
  if (type == 1) one.dtype = at::kBFloat16;
  if (type == 2) one.amp = at::kBFloat16;
  one.recompute = GENERATE(nn::Recompute::kNone, nn::Recompute::kSelective, nn::Recompute::kFull);
  INFO("type " << type << ", recompute " << static_cast<int>(one.recompute));
  one.fast.release_plain = true;
  check_same(folder.path(), one);
  for (const auto& name : nn::FastPaths::names()) {
    if (one.recompute != nn::Recompute::kNone) break;
    INFO("without " << name);
    Case without = one;
    without.fast.at(name) = false;
    check_same(folder.path(), without);
  }
  INFO("without all");
  one.fast = nn::FastPaths::none();
  check_same(folder.path(), one);
}

TEST_CASE("A streamed base: the same bits with tied weights, biases, dropout and parts that train", "[offload]") {
  const OneThread one_thread;
  const ScratchFolder folder;
  Case one;
  one.dtype = GENERATE(at::kFloat, at::kBFloat16);
  one.fast.release_plain = true;
  SECTION("a tied head") {
    save_base(folder.path(), true, false, DType::kBF16);
    check_same(folder.path(), one);
  }
  SECTION("trained biases, dropout, recomputed") {
    save_base(folder.path(), false, true, DType::kBF16);
    one.dropout = 0.2;
    one.bias = "lora_only";
    one.recompute = nn::Recompute::kFull;
    check_same(folder.path(), one);
  }
  SECTION("a module trained whole, and base weights by rule: they are held, the others stream") {
    save_base(folder.path(), false, false, DType::kBF16);
    one.modules_to_save = {"gate_proj"};
    one.rules.train = {"layers.1.self_attn.o_proj"};
    check_same(folder.path(), one, 21 - 3 - 1);
  }
  SECTION("activations in a store") {
    save_base(folder.path(), false, false, DType::kBF16);
    one.recompute = GENERATE(nn::Recompute::kSelective, nn::Recompute::kFull);
    one.store = true;
    check_same(folder.path(), one);
  }
}

TEST_CASE("A streamed base: saved, merged and searched for bad values without being held", "[offload]") {
  const ScratchFolder folder, other;
  save_base(folder.path(), false, false, DType::kF32);
  auto held = llama::load(folder.path()), streamed = llama::load(folder.path(), {.offload = nn::Offload::kDisk});
  const std::vector<Batch> batches = {rows(1)};
  SECTION("saved") {
    llama::save(*streamed, other.path());
    CHECK(streamed->model->layers[0]->as<llama::LlamaDecoderLayer>()->mlp->gate_proj->weight_is_streamed());
    auto again = llama::load(other.path());
    auto expected = held->named_parameters();
    for (const auto& entry : again->named_parameters()) CHECK(at::equal(entry.value(), expected[entry.key()]));
  }
  SECTION("merged: the layers that change are held, in their new values") {
    LoraOptions options{.rank = 2, .alpha = 4, .init = "false"};
    options.targets = std::vector<std::string>{"v_proj"};
    for (auto& model : {held, streamed}) {
      at::manual_seed(1);
      auto adapters = inject(*model, options);
      adapters.merge();
    }
    CHECK(loss_without_gradients(*streamed, at::kFloat) == loss_without_gradients(*held, at::kFloat));
  }
  SECTION("searched") {
    CHECK(train::locate_nonfinite(*streamed, batches, at::kFloat).empty());
    CHECK(streamed->model->layers[0]->as<llama::LlamaDecoderLayer>()->mlp->gate_proj->weight_is_streamed());
  }
}

TEST_CASE("A streamed base: a layer's weights come together, and no other layer's with them", "[offload]") {
  const ScratchFolder folder;
  save_base(folder.path(), false, false, DType::kF32);
  auto model = llama::load(folder.path(), {.offload = nn::Offload::kDisk});
  for (const auto& layer : *model->model->layers) {
    std::vector<nn::LinearImpl*> products;
    size_t bytes = 0;
    for (const auto& module : layer->modules()) {
      if (auto* linear = module->as<nn::LinearImpl>()) products.push_back(linear), bytes += linear->weight.nbytes();
    }
    CHECK(products.size() == 7);
    for (auto* product : products)
      CHECK(product->passing_weight().storage().nbytes() == bytes);  // all of what is in memory for it
  }
}

TEST_CASE("A streamed base: a file cut short during the run is an error that names it", "[offload]") {
  const ScratchFolder folder;
  save_base(folder.path(), false, false, DType::kF32);
  auto model = llama::load(folder.path(), {.offload = nn::Offload::kDisk});
  LoraOptions options{.rank = 2, .alpha = 4, .init = "false"};
  options.targets = std::vector<std::string>{"q_proj"};
  freeze_base(*model, inject(*model, options));
  const at::Tensor loss = nn::causal_lm_loss_sum(*model, rows(1));
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    if (entry.path().extension() == ".safetensors") std::filesystem::resize_file(entry.path(), 4096);
  }
  const auto names_a_shard = [&](const std::string& message) {
    return message.find((folder / "model-0000").string()) != std::string::npos;
  };
  CHECK(names_a_shard(message_of<IoError>([&] { loss.backward(); })));
  CHECK(names_a_shard(message_of<IoError>([&] { loss_without_gradients(*model, at::kFloat); })));
}
