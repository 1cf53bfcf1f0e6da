// Every method with every precision and feature of training, one cell at a time. The table of docs/methods/README.md is made
// here: with LORA_WRITE_MATRIX=FILE the last test writes it, without it compares.
#include <algorithm>
#include <functional>
#include <map>
#include <numeric>

#include "lora/adapters/adapter_io.h"
#include "lora/adapters/eva.h"
#include "lora/adapters/freeze.h"
#include "lora/adapters/inject.h"
#include "lora/adapters/loftq.h"
#include "lora/core/error.h"
#include "lora/io/model_files.h"
#include "lora/nn/loss.h"
#include "lora/ops/device.h"
#include "parity/peft_fixture.h"
#include "support.h"

using namespace lora;
using namespace lora::testing::peft;

namespace {

struct Method {
  std::string name;
  MethodOptions options;
  double learning_rate = 5e-3;
  bool on_few_bits_alone = false;
};

AdaLoraOptions adalora() {
  AdaLoraOptions options;
  options.init_rank = 4;
  options.target_rank = 2;
  options.initial_steps = 1;
  options.final_steps = 1;
  options.total_steps = 6;
  return options;
}

BottleneckOptions bottleneck(const std::string& kind) {
  auto options = bottleneck_preset(kind);
  options.reduction_factor = 8;
  return options;
}

/// Half of the fixtures' vocabulary, so that the batch has some of them and others.
std::vector<int64_t> some_tokens() {
  std::vector<int64_t> ids(64);
  std::iota(ids.begin(), ids.end(), 1);
  return ids;
}

std::vector<Method> methods() {
  const LoraOptions base{.rank = 4, .alpha = 8};
  const auto lora = [&](auto change) {
    LoraOptions options = base;
    change(options);
    return options;
  };
  return {{"LoRA", base},
          {"rsLoRA", lora([](auto& options) { options.rank_stabilized = true; })},
          {"LoRA with dropout", lora([](auto& options) { options.dropout = 0.2; })},
          {"DoRA", lora([](auto& options) { options.dora = true; })},
          {"PiSSA", lora([](auto& options) { options.init = "pissa"; })},
          {"OLoRA", lora([](auto& options) { options.init = "olora"; })},
          {"EVA", lora([](auto& options) { options.init = "eva"; })},
          {"LoftQ", lora([](auto& options) { options.init = "loftq"; }), 5e-3, /*on_few_bits_alone=*/true},
          {"AdaLoRA", adalora()},
          {"(IA)³", Ia3Options{}, 2e-2},
          {"prefix", PrefixOptions{.num_virtual_tokens = 4}},
          {"prefix with projection", PrefixOptions{.num_virtual_tokens = 4, .projection = true}},
          {"P-tuning v2", PrefixOptions{.num_virtual_tokens = 4, .dropout = 0.1}},
          {"prompt", PromptOptions{.num_virtual_tokens = 4}, 5e-2},
          {"P-tuning", PTuningOptions{.num_virtual_tokens = 4}},
          {"bottleneck, Houlsby", bottleneck("houlsby")},
          {"bottleneck, Pfeiffer", bottleneck("pfeiffer")},
          {"bottleneck, parallel", bottleneck("parallel")},
          {"trainable tokens", TrainableTokensOptions{.token_indices = some_tokens()}, 2e-2},
          {"LoRA and trainable tokens", lora([](auto& options) { options.token_indices = some_tokens(); })}};
}

struct Precision {
  std::string name;
  at::ScalarType weights, amp;
  double tolerance;  ///< of losses that are the same numbers in another order
  std::optional<QuantizationScheme> few_bits = std::nullopt;
};

const std::vector<Precision> kPrecisions = {
    {"fp32", at::kFloat, at::kFloat, 1e-5},
    {"bf16 AMP", at::kFloat, at::kBFloat16, 0.03},
    {"bf16 base", at::kBFloat16, at::kFloat, 0.03},
    {"fp16 AMP", at::kFloat, at::kHalf, 0.01},
    {"nf4, double", at::kFloat, at::kFloat, 1e-5, QuantizationScheme{QuantizedType::kNf4, 64, true}},
    {"int8", at::kFloat, at::kFloat, 1e-5, QuantizationScheme{.type = QuantizedType::kInt8}}};

std::shared_ptr<llama::LlamaForCausalLMImpl> base_in(const Precision& precision) {
  return llama::load(reference() / "base", {.dtype = precision.weights, .quantization = precision.few_bits});
}

Batch rows() {
  Batch batch = fixture_batch();
  batch.attention_mask_BS = at::Tensor();
  return batch;
}

/// What an init takes from data or from plain weights.
void start(llama::LlamaForCausalLMImpl& model, const AdapterSet& adapters) {
  const auto* options = std::get_if<LoraOptions>(&adapters.options());
  if (options == nullptr) return;
  if (options->init == "eva") initialize_eva(model, adapters, {rows()});
  if (options->init == "loftq") {
    initialize_loftq(adapters,
                     [](const std::string& path) { return io::ModelFiles(reference() / "base").read(path + ".weight"); });
  }
}

/// A model with the method's adapter, ready to train; the same every time.
struct Setup {
  std::shared_ptr<llama::LlamaForCausalLMImpl> model;
  AdapterSet adapters;
  train::StepState state;

  Setup(const Method& method, const Precision& precision, const FreezeRules& rules = {}) {
    seed_generators(7);
    model = base_in(precision);
    adapters = inject(*model, method.options);
    start(*model, adapters);
    freeze_base(*model, adapters, rules);
    model->train();
    std::vector<std::pair<std::string, at::Tensor>> trained;
    for (const auto& entry : model->named_parameters()) {
      if (entry.value().requires_grad()) trained.emplace_back(entry.key(), entry.value());
    }
    state = make_state(adapters, trained, method.learning_rate);
    state.options.amp_dtype = precision.amp;
    if (precision.amp == at::kHalf) state.scaler = train::GradScaler({.enabled = true});
  }

  std::vector<double> steps(int count, const std::vector<Batch>& batches) {
    std::vector<double> losses;
    for (int i = 0; i < count; ++i) losses.push_back(train::train_step(*model, batches, state).loss);
    return losses;
  }
};

/// The same rows one by one, and as one packed row.
std::vector<Batch> apart() {
  std::vector<Batch> batches;
  const Batch both = rows();
  for (int64_t row = 0; row < 2; ++row) {
    Batch one;
    one.input_ids_BS = both.input_ids_BS.slice(0, row, row + 1);
    one.labels_BS = both.labels_BS.slice(0, row, row + 1);
    one.num_tokens = row == 0 ? 12 : 9;
    one.num_targets = (one.labels_BS.slice(1, 1) != kIgnoreLabel).sum().item<int64_t>();
    batches.push_back(one);
  }
  return batches;
}

Batch packed() {
  const Batch both = rows();
  Batch batch;
  batch.segment_lengths = {12, 9};
  batch.input_ids_BS = at::cat({both.input_ids_BS[0], both.input_ids_BS[1].slice(0, 0, 9)}).unsqueeze(0);
  batch.labels_BS = at::cat({both.labels_BS[0], both.labels_BS[1].slice(0, 0, 9)}).unsqueeze(0);
  batch.num_tokens = 21;
  batch.num_targets = both.num_targets;
  return batch;
}

bool drops(const Method& method) { return method.name == "LoRA with dropout" || method.name == "P-tuning v2"; }

/// What a cell says: "yes", or why it makes no sense. Every one has its checks.
using Feature = std::function<std::string(const Method&, const Precision&)>;

std::string trains(const Method& method, const Precision& precision) {
  Setup setup(method, precision);
  const auto losses = setup.steps(6, {rows()});
  CHECK(std::all_of(losses.begin(), losses.end(), [](double loss) { return std::isfinite(loss); }));
  CHECK(losses.back() < losses.front());
  return "yes";
}

std::string packs(const Method& method, const Precision& precision) {
  Setup plain(method, precision), other(method, precision);
  if (drops(method)) plain.model->eval(), other.model->eval();
  CHECK(std::abs(plain.steps(1, {rows()})[0] - other.steps(1, {packed()})[0]) < precision.tolerance);
  return "yes";
}

std::string recomputes(const Method& method, const Precision& precision) {
  Setup plain(method, precision);
  const auto wanted = plain.steps(3, {rows()});
  for (const auto recompute : {nn::Recompute::kSelective, nn::Recompute::kFull}) {
    Setup again(method, precision);
    again.model->recompute = recompute;
    CHECK(again.steps(3, {rows()}) == wanted);
  }
  return "yes";
}

std::string accumulates(const Method& method, const Precision& precision) {
  Setup whole(method, precision), parts(method, precision);
  if (drops(method)) whole.model->eval(), parts.model->eval();
  const auto one = whole.steps(3, {rows()}), two = parts.steps(3, apart());
  for (size_t i = 0; i < one.size(); ++i) CHECK(std::abs(one[i] - two[i]) < 10 * precision.tolerance);
  return "yes";
}

std::string freezes(const Method& method, const Precision& precision) {
  Setup setup(method, precision, {.train = {R"(layers\.1\.input_layernorm)"}});
  const auto norm = setup.model->named_parameters()["model.layers.1.input_layernorm.weight"];
  const auto before = norm.detach().clone(), other = setup.model->named_parameters()["model.norm.weight"].detach().clone();
  setup.steps(2, {rows()});
  CHECK_FALSE(at::equal(norm.detach(), before));
  CHECK(at::equal(setup.model->named_parameters()["model.norm.weight"].detach(), other));
  return "yes";
}

std::string saves(const Method& method, const Precision& precision) {
  const torch::NoGradGuard no_grad;
  Setup setup(method, precision);
  {
    const at::AutoGradMode with_gradients(true);
    setup.steps(6, {rows()});
  }
  setup.model->eval();
  const testing::ScratchFolder folder;
  save_adapter(setup.adapters, folder.path() / "adapter");
  auto fresh = base_in(precision);
  load_adapter(*fresh, folder.path() / "adapter");
  fresh->eval();
  const double scale = precision.weights == at::kFloat ? 1e-5 : 0.03;
  CHECK(largest_difference(fresh->forward(rows()), setup.model->forward(rows())) < scale);
  return "yes";
}

std::string goes_on(const Method& method, const Precision& precision) {
  Setup whole(method, precision);
  whole.steps(3, {rows()});
  const auto generator = generator_state(at::kCPU).clone();
  auto files = adapter_to_files(whole.adapters);
  for (auto& [name, tensor] : files.tensors) tensor = tensor.clone();  // they share the adapter's memory
  std::map<std::string, at::Tensor> beyond, moments;
  for (const auto& [name, tensor] : whole.adapters.training_state()) beyond[name] = tensor.detach().clone();
  for (const auto& [name, tensor] : whole.state.optimizer->state()) moments[name] = tensor.clone();
  const auto scaler = whole.state.scaler.state();
  const auto wanted = whole.steps(3, {rows()});

  Setup resumed(method, precision);
  if (beyond.empty()) {
    load_adapter_tensors(resumed.adapters, files.tensors);
  } else {
    resumed.adapters.load_training_state(beyond);
  }
  resumed.state.optimizer->load_state(moments);
  resumed.state.scaler.load_state(scaler);
  resumed.state.step = 3;
  set_generator_state(at::kCPU, generator);
  CHECK(resumed.steps(3, {rows()}) == wanted);
  return "yes";
}

std::string merges(const Method& method, const Precision& precision) {
  const torch::NoGradGuard no_grad;
  Setup setup(method, precision);
  {
    const at::AutoGradMode with_gradients(true);
    setup.steps(2, {rows()});
  }
  setup.model->eval();
  if (!setup.adapters.slots().empty()) {
    const at::Tensor before = setup.model->forward(rows());
    setup.adapters.merge();
    CHECK(largest_difference(setup.model->forward(rows()), before) < (precision.weights == at::kFloat ? 2e-5 : 0.15));
    return "yes";
  }
  CHECK(testing::message_of<ConfigError>([&] { setup.adapters.merge(); }).find("no weight can hold") != std::string::npos);
  return "no weight holds it";
}

const std::vector<std::pair<std::string, Feature>> kFeatures = {
    {"trains", trains},          {"packing", packs},       {"recompute", recomputes}, {"accumulation", accumulates},
    {"freezing rules", freezes}, {"save and load", saves}, {"resume", goes_on},       {"merge", merges}};

std::string joined(const std::vector<std::string>& cells) {
  std::string line = "|";
  for (const auto& cell : cells) line += " " + cell + " |";
  return line + "\n";
}

}  // namespace

TEST_CASE("every method with every precision and feature", "[parity]") {
  std::vector<std::string> titles = {"method"}, rule = {"---"};
  for (const auto& [name, feature] : kFeatures) {
    titles.push_back(name);
    rule.push_back("---");
  }
  std::string table = joined(titles) + joined(rule);
  for (const auto& method : methods()) {
    std::vector<std::string> cells = {method.name};
    for (const auto& [name, feature] : kFeatures) {
      std::string said;
      for (const auto& precision : kPrecisions) {
        INFO(method.name << ", " << precision.name << ", " << name);
        if (method.on_few_bits_alone && !precision.few_bits) continue;
        const std::string cell = feature(method, precision);
        CHECK((said.empty() || said == cell));
        said = cell;
      }
      cells.push_back(said);
    }
    table += joined(cells);
  }
  if (const char* file = std::getenv("LORA_WRITE_MATRIX")) {
    write_file_atomically(file, table);
    return;
  }
  CHECK(read_file(Path(std::getenv("LORA_SOURCE_DIR")) / "docs/methods/README.md").find(table) != std::string::npos);
}
