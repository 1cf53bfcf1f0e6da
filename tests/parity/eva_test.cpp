// EVA: the directions, ranks and alphas of Hugging Face PEFT (tests/reference/eva).
#include "lora/adapters/eva.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <limits>

#include "lora/adapters/adapter_io.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/core/error.h"
#include "parity/peft_fixture.h"
#include "support.h"

using namespace lora;
using namespace lora::testing::peft;
using lora::testing::message_of;

namespace {

Path folder() { return testing::reference_folder() / "eva"; }

std::vector<Batch> batches(bool masked = true) {
  const auto tensors = io::load_safetensors(folder() / "batches.safetensors");
  std::vector<Batch> made;
  for (int i = 0; i < 5; ++i) {
    Batch batch;
    batch.input_ids_BS = tensors.at(fmt::format("{}.input_ids", i));
    batch.labels_BS = tensors.at(fmt::format("{}.labels", i));
    if (masked) batch.attention_mask_BS = tensors.at(fmt::format("{}.attention_mask", i));
    made.push_back(batch);
  }
  return made;
}

/// As the reference was made. More threads than cores that are free take minutes for matrices so small.
class OneThread {
 public:
  OneThread() { at::set_num_threads(1); }
  ~OneThread() { at::set_num_threads(before_); }

 private:
  int before_ = at::get_num_threads();
};

struct Case {
  std::string name;
  LoraOptions lora;
  EvaOptions eva = {};
};

LoraOptions options_of(int64_t rank, double alpha, std::vector<std::string> targets) {
  LoraOptions options{.rank = rank, .alpha = alpha, .init = "eva"};
  options.targets = std::move(targets);
  return options;
}

const std::vector<std::string> kAll = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};

std::vector<Case> cases() {
  std::vector<Case> all = {{"all", options_of(4, 8, kAll)},
                           {"redistributed", options_of(3, 10, kAll), {.rho = 5}},
                           {"rho_1", options_of(4, 8, {"q_proj", "v_proj", "down_proj"}), {.rho = 1, .tau = 0.999}},
                           {"patterns",
                            options_of(4, 8, {"v_proj", "o_proj", "up_proj"}),
                            {.rho = 1.7, .use_label_mask = false, .adjust_scaling_factors = false}},
                           {"whitened", options_of(4, 8, {"o_proj", "down_proj"}), {.label_mask_value = 7, .whiten = true}}};
  all[2].lora.rank_stabilized = true;
  all[3].lora.rank_pattern = {{"o_proj", 6}};
  all[3].lora.alpha_pattern = {{"o_proj", 5}};
  return all;
}

const LoraOptions& lora_of(const AdapterSet& adapters) { return std::get<LoraOptions>(adapters.options()); }

LoraLinear& lora_at(const AdapterSet& adapters, size_t slot) {
  return dynamic_cast<LoraLinear&>(*adapters.slots().at(slot).adapter);
}

template <class Value>
std::map<std::string, Value> as_map(const std::vector<std::pair<std::string, Value>>& entries) {
  return {entries.begin(), entries.end()};
}

}  // namespace

TEST_CASE("EVA finds PEFT's directions, ranks and alphas", "[parity]") {
  const OneThread one_thread;
  for (const auto& [name, lora, eva] : cases()) {
    INFO(name);
    auto model = load_base("base");
    const auto adapters = inject(*model, lora);
    const auto report = initialize_eva(*model, adapters, batches(), eva);
    const auto said = formats::parse_json(read_file(folder() / (name + ".json")), name);
    CHECK(report.converged);
    CHECK(report.batches == said.at("batches").get<int64_t>());
    CHECK(as_map(lora_of(adapters).rank_pattern) == said.at("rank_pattern").get<std::map<std::string, int64_t>>());
    CHECK(as_map(lora_of(adapters).alpha_pattern) == said.at("alpha_pattern").get<std::map<std::string, double>>());
    const auto targets = std::get<std::vector<std::string>>(lora_of(adapters).targets);
    const auto ranks = said.at("ranks").get<std::map<std::string, int64_t>>();
    CHECK(targets.size() == ranks.size());
    const auto expected = io::load_safetensors(folder() / (name + ".safetensors"));
    for (size_t i = 0; i < targets.size(); ++i) {
      INFO(targets[i]);
      CHECK(adapters.slots()[i].path == targets[i]);
      REQUIRE(expected.contains(targets[i]));
      CHECK(largest_difference(lora_at(adapters, i).lora_A, expected.at(targets[i])) < 1e-4);
      CHECK(lora_at(adapters, i).lora_B.count_nonzero().item<int64_t>() == 0);
    }
    int64_t without = 0;
    for (const auto& layer : report.layers) without += layer.rank == 0 ? 1 : 0;
    CHECK(without + static_cast<int64_t>(targets.size()) == static_cast<int64_t>(report.layers.size()));
  }
}

TEST_CASE("EVA whitens each layer once, whoever shares its input", "[parity]") {
  const OneThread one_thread;
  auto plain = load_base("base"), whitened = load_base("base");
  const auto lora = options_of(4, 8, {"q_proj", "k_proj", "v_proj"});
  const auto a = inject(*plain, lora), b = inject(*whitened, lora);
  initialize_eva(*plain, a, batches());
  initialize_eva(*whitened, b, batches(), {.whiten = true});
  REQUIRE(a.slots().size() == b.slots().size());
  for (size_t i = 0; i < a.slots().size(); ++i) {
    const at::Tensor length = at::linalg_vector_norm(lora_at(b, i).lora_A, 2, {1}, true);
    CHECK(largest_difference(lora_at(b, i).lora_A / length, lora_at(a, i).lora_A) < 1e-5);
    // The first layer with an input has its lengths, the others the same.
    const auto& first = lora_at(b, i - i % 3).lora_A;
    const int64_t both = std::min(first.size(0), lora_at(b, i).lora_A.size(0));
    CHECK(largest_difference(first.slice(0, 0, both), lora_at(b, i).lora_A.slice(0, 0, both)) == 0);
  }
}

TEST_CASE("EVA leaves the model's function, its modes and everything but the ranks", "[parity]") {
  const OneThread one_thread;
  const torch::NoGradGuard no_grad;
  auto model = load_base("base");
  LoraOptions options = options_of(3, 10, kAll);
  options.modules_to_save = {"lm_head"};
  options.dora = GENERATE(false, true);
  options.dropout = 0.1;
  const auto adapters = inject(*model, options);
  model->train();
  const at::Tensor before = load_base("base")->forward(fixture_batch());
  initialize_eva(*model, adapters, batches(), {.rho = 5});
  CHECK(model->is_training());
  CHECK(model->fast_paths.joined);
  CHECK(active_adapters(*model) == std::vector<std::string>{"default"});
  CHECK(adapters.slots().size() < 14);
  CHECK(adapters.saved_parameters().size() == 1);
  for (const auto& parameter : adapters.parameters()) CHECK(parameter.requires_grad());
  for (const auto& slot : adapters.slots()) {
    CHECK(slot.adapter->is_training());
    CHECK(slot.linear->slot.names() == std::vector<std::string>{"default"});
  }
  model->eval();
  CHECK(largest_difference(model->forward(fixture_batch()), before) < 1e-5);
  freeze_base(*model, adapters);
}

TEST_CASE("EVA's adapter is saved with its ranks, and loads with them", "[parity]") {
  const OneThread one_thread;
  const torch::NoGradGuard no_grad;
  auto model = load_base("base");
  const auto adapters = inject(*model, options_of(3, 10, kAll));
  initialize_eva(*model, adapters, batches(), {.rho = 5});
  for (size_t i = 0; i < adapters.slots().size(); ++i) lora_at(adapters, i).lora_B.normal_();
  const testing::ScratchFolder scratch;
  save_adapter(adapters, scratch / "adapter");
  auto other = load_base("base");
  const auto loaded = load_adapter(*other, scratch / "adapter");
  CHECK(lora_of(loaded).rank_pattern == lora_of(adapters).rank_pattern);
  CHECK(lora_of(loaded).alpha_pattern == lora_of(adapters).alpha_pattern);
  CHECK(largest_difference(other->forward(fixture_batch()), model->forward(fixture_batch())) == 0);
  const auto config = formats::parse_json(read_file(scratch / "adapter/adapter_config.json"), "c");
  const auto said = formats::parse_json(read_file(folder() / "redistributed.json"), "redistributed");
  CHECK(config.at("rank_pattern") == said.at("rank_pattern"));
  CHECK(config.at("alpha_pattern") == said.at("alpha_pattern"));
  CHECK(config.at("init_lora_weights") == true);
}

TEST_CASE("EVA counts what the labels count: padding needs no mask then", "[parity]") {
  const OneThread one_thread;
  auto masked = load_base("base"), unmasked = load_base("base");
  const auto lora = options_of(4, 8, {"q_proj", "down_proj"});
  const auto a = inject(*masked, lora), b = inject(*unmasked, lora);
  initialize_eva(*masked, a, batches(true));
  initialize_eva(*unmasked, b, batches(false));
  REQUIRE(lora_of(a).rank_pattern == lora_of(b).rank_pattern);
  for (size_t i = 0; i < a.slots().size(); ++i) CHECK(largest_difference(lora_at(a, i).lora_A, lora_at(b, i).lora_A) < 1e-3);
}

TEST_CASE("EVA works on bases in few bits and half precision, and on packed rows", "[parity]") {
  const OneThread one_thread;
  const bool quantized = GENERATE(false, true);
  llama::LoadOptions load{.dtype = at::kBFloat16};
  if (quantized) load.quantization = QuantizationScheme{QuantizedType::kNf4, 64, true};
  auto model = llama::load(reference() / "base", load);
  const auto adapters = inject(*model, options_of(4, 8, {"q_proj", "o_proj", "down_proj"}));
  Batch packed;
  packed.segment_lengths = {20, 12, 8};
  packed.input_ids_BS = at::randint(3, 128, {1, 40});
  packed.labels_BS = packed.input_ids_BS;
  packed.num_tokens = 32;
  packed.input_ids_BS.slice(1, 32).fill_(0);
  const auto report = initialize_eva(*model, adapters, {packed}, {.use_label_mask = GENERATE(false, true)});
  CHECK(report.converged);
  int64_t ranks = 0;
  for (size_t i = 0; i < adapters.slots().size(); ++i) {
    const at::Tensor a_RI = lora_at(adapters, i).lora_A;
    CHECK(a_RI.scalar_type() == at::kFloat);
    CHECK(largest_difference(a_RI.mm(a_RI.t()), at::eye(a_RI.size(0))) < 1e-4);
    ranks += a_RI.size(0);
    CHECK(adapters.slots()[i].linear->weight_is_quantized() == quantized);
  }
  CHECK(ranks == 6 * 4);
}

TEST_CASE("EVA of what it cannot do says so, and leaves the model as it was", "[parity]") {
  const OneThread one_thread;
  auto model = load_base("base");
  const auto adapters = inject(*model, options_of(8, 8, {"q_proj"}));
  const auto fails = [&](const auto& given, const EvaOptions& options) {
    return [&model, &adapters, given, options] { initialize_eva(*model, adapters, given, options); };
  };
  CHECK(message_of<DataError>(fails(std::vector<Batch>{}, {})).find("some batch") != std::string::npos);
  auto few = batches();
  for (auto& batch : few) batch.labels_BS = at::full_like(batch.labels_BS, kIgnoreLabel);
  const auto text = message_of<DataError>(fails(few, {.most_batches = 3}));
  CHECK(text.find("16 counted positions for model.layers.0.self_attn.q_proj; found 0 at most") != std::string::npos);
  CHECK(adapters.slots().size() == 2);
  CHECK(adapters.slots()[0].linear->slot.names() == std::vector<std::string>{"default"});
  CHECK(active_adapters(*model) == std::vector<std::string>{"default"});
  CHECK_THROWS_AS(fails(batches(), {.rho = 0.5})(), ConfigError);
  CHECK_THROWS_AS(fails(batches(), {.tau = 1.5})(), ConfigError);
  CHECK_THROWS_AS(fails(batches(), {.most_batches = 0})(), ConfigError);

  const auto other = inject(*model, options_of(2, 2, {"v_proj"}), "other");
  CHECK(message_of<ConfigError>(fails(batches(), {})).find("only active one") != std::string::npos);
  set_active_adapters(*model, {"default"});
  CHECK_FALSE(initialize_eva(*model, adapters, batches(), {.most_batches = 2}).converged);

  auto plain = load_base("base");
  const auto ordinary = inject(*plain, LoraOptions{.rank = 2});
  CHECK(message_of<ConfigError>([&] { initialize_eva(*plain, ordinary, batches()); }).find("init \"true\"") != std::string::npos);
  auto broken = load_base("base");
  const auto targets = inject(*broken, options_of(4, 8, {"q_proj"}));
  {
    const torch::NoGradGuard no_grad;
    broken->model->embed_tokens->weight.fill_(std::numeric_limits<float>::quiet_NaN());
  }
  CHECK(message_of<NonFiniteError>([&] { initialize_eva(*broken, targets, batches()); }).find("q_proj") != std::string::npos);
}
