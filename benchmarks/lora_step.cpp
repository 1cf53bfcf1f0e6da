// Our side of the comparison with the Python peers: the same pipe protocol as peers/peft_step.py.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <torch/utils.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <iostream>

#include "lora/core/stopwatch.h"
#include "lora/data/collate.h"
#include "lora/data/dataset.h"
#include "lora/generate/generate.h"
#include "lora/io/dtype.h"
#include "lora/io/safetensors.h"
#include "lora/lora.h"
#include "lora/models/glm.h"
#include "lora/models/llama.h"
#include "lora/models/registry.h"
#include "lora/ops/shared_cores.h"

namespace {

using namespace lora;

struct Options {
  std::string model, adapter, rows, dtype = "bf16", device = "cpu", quantize;
  bool packed = false;
  int threads = 1, prompt_lookup_num_tokens = 0;
  double lr = 1e-4;
};

double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

double seconds_since_start() {
  const char* started = std::getenv("BENCH_STARTED");
  const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  return started == nullptr ? 0 : now - std::atof(started);
}

/// Of a base in few bits: blocks of 64, double quantised. Nothing: plain.
std::optional<QuantizationScheme> scheme_of(const std::string& type) {
  if (type.empty()) return std::nullopt;
  const auto known = quantized_type_from(type);
  if (!known) throw ConfigError("[--quantize] the type must be nf4, fp4 or int8; found " + type);
  return QuantizationScheme{.type = *known, .double_quantized = bits_of(*known) == 4};
}

/// The model, its adapter and the fixed rows.
class Run {
 public:
  explicit Run(const Options& options) {
    at::set_num_threads(options.threads);
    const auto dtype = io::to_torch(parse_float_dtype(options.dtype, "--dtype"), "--dtype");
    device_ = parse_device(options.device);
    model_ = models::architecture_of(options.model)
                 .load(options.model, {.device = device_, .dtype = dtype, .quantization = scheme_of(options.quantize)});
    model_->fast_paths.release_plain = true;
    if (!options.adapter.empty()) adapters_ = load_adapter(*model_, options.adapter);
    const auto dataset = data::load_dataset(options.rows, {.format = "tokens"}, nullptr);
    std::vector<data::Example> rows;
    for (int64_t row = 0; row < dataset.size(); ++row) rows.push_back(dataset.example(row));
    std::vector<const data::Example*> examples;
    for (const auto& row : rows) examples.push_back(&row);
    batch_ = options.packed ? data::collate_packed(examples, 0) : data::collate(examples, 0);
    first_row_ = rows.front().input_ids;
    learning_rate_ = options.lr;
  }

  void begin_training() {
    if (trainer_) return;
    adapters_ ? freeze_base(*model_, adapters_) : train_all(*model_);
    trainer_.emplace(model_, adapters_,
                     train::TrainerOptions{.steps = 1'000'000, .learning_rate = learning_rate_, .device = device_});
  }

  void steps(int count) {
    begin_training();
    std::vector<double> wall, cpu;
    double loss = 0;
    for (int i = 0; i < count; ++i) {
      const Stopwatch watch;
      const double cpu_before = cpu_seconds();
      loss = trainer_->step({&batch_, 1}).loss;
      wait();
      wall.push_back(watch.seconds());
      cpu.push_back(cpu_seconds() - cpu_before);
    }
    if (first_step_seconds_ == 0) first_step_seconds_ = seconds_since_start();
    fmt::print("{{\"wall\": [{}], \"cpu\": [{}], \"loss\": {}, \"first_step_seconds\": {}, \"peak_memory_bytes\": {}}}\n",
               fmt::join(wall, ", "), fmt::join(cpu, ", "), loss, first_step_seconds_, peak_bytes(device_));
    std::fflush(stdout);
  }

  void gradients(const std::string& path) {
    begin_training();
    at::Tensor loss = nn::causal_lm_loss_sum(*model_, batch_.to(device_)) / batch_.num_targets;
    const at::Tensor regularizer = adapters_ ? adapters_.regularizer() : at::Tensor();
    if (regularizer.defined()) loss = loss + regularizer;
    loss.backward();
    io::NamedTensors tensors;
    for (auto [name, parameter] : trained()) {
      tensors.emplace_back(name, parameter.grad().cpu().clone());
      parameter.mutable_grad() = at::Tensor();
    }
    io::save_safetensors(path, tensors);
    fmt::print("{{\"loss\": {}, \"peak_memory_bytes\": {}}}\n", loss.item<double>(), peak_bytes(device_));
    std::fflush(stdout);
  }

  /// The matrix products that a step cannot do without, alone: the frozen weights' both ways for every token, the head's
  /// for every target, the adapters' and attention's. The lowest layer needs no gradient of its input.
  void products(int count) {
    if (products_.empty()) {
      build_products();
      for (const auto& product : products_) product();  // the transposes are made at their first use
    }
    double wall = 0, cpu = 0;
    for (int i = 0; i < count; ++i) {
      const torch::NoGradGuard no_grad;
      const Stopwatch watch;
      const double cpu_before = cpu_seconds();
      for (const auto& product : products_) product();
      wait();
      wall += watch.seconds();
      cpu += cpu_seconds() - cpu_before;
    }
    fmt::print("{{\"wall\": {}, \"cpu\": {}, \"peak_memory_bytes\": {}}}\n", wall / count, cpu / count, peak_bytes(device_));
    std::fflush(stdout);
  }

  void generate(int count, int guesses) {
    model_->eval();
    lora::generate::GenerateOptions options;
    options.sampling.temperature = 0;
    options.max_new_tokens = count;
    options.prompt_lookup_num_tokens = guesses;
    const std::vector<int64_t> prompt(first_row_.begin(), first_row_.begin() + 16);
    const Stopwatch watch;
    const double cpu_before = cpu_seconds();
    const auto result = lora::generate::complete(*model_, prompt, options, device_);
    fmt::print("{{\"wall\": {}, \"cpu\": {}, \"tokens\": [{}], \"peak_memory_bytes\": {}}}\n", watch.seconds(),
               cpu_seconds() - cpu_before, fmt::join(result.token_ids, ", "), peak_bytes(device_));
    std::fflush(stdout);
  }

 private:
  void build_products() {
    const auto llama = std::dynamic_pointer_cast<llama::LlamaForCausalLMImpl>(model_);
    if (!llama) throw ConfigError("[products] only a Llama's products are known; found " + model_->model_type());
    const auto& config = llama->config;
    const int64_t hidden = config.hidden_size, inner = config.intermediate_size,
                  heads = config.num_attention_heads * config.head_dim, keys = config.num_key_value_heads * config.head_dim;
    for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
      add_weight(heads + 2 * keys, hidden, batch_.num_tokens, layer > 0);
      add_weight(hidden, heads, batch_.num_tokens, true);
      add_weight(2 * inner, hidden, batch_.num_tokens, true);
      add_weight(hidden, inner, batch_.num_tokens, true);
      add_attention(config.num_attention_heads, config.head_dim);
    }
    add_weight(config.vocab_size, hidden, batch_.num_targets, true);
    if (!adapters_) return;
    for (const auto& [name, factor] : adapters_.named_parameters()) {
      if (factor.dim() == 2 && factor.size(1) > 1) add_factor(factor.sizes());
    }
  }

  at::Tensor numbers(const std::vector<int64_t>& sizes) const {
    return at::randn(sizes, at::TensorOptions(device_).dtype(at::kBFloat16));
  }

  /// A frozen weight with the input and, for the gradient, the other way.
  void add_weight(int64_t outputs, int64_t inputs, int64_t rows, bool backward) {
    const at::Tensor weight = numbers({outputs, inputs}), input = numbers({rows, inputs}), gradient = numbers({rows, outputs});
    if (!device_.is_cpu()) {
      products_.push_back([=] {
        input.mm(weight.t());
        if (backward) gradient.mm(weight);
      });
      return;
    }
    const auto packed = std::make_shared<const ops::PackedWeight>(std::vector<at::Tensor>{weight}, at::kBFloat16);
    products_.push_back([=] {
      packed->times(input);
      if (backward) packed->times_transposed(gradient);
    });
  }

  /// A (R, I) or B (O, R): the product forward, and backward those for the input and for the factor.
  void add_factor(at::IntArrayRef sizes) {
    const int64_t in = sizes[1], out = sizes[0];
    products_.push_back(
        [factor = numbers({out, in}), input = numbers({batch_.num_tokens, in}), gradient = numbers({batch_.num_tokens, out})] {
          input.mm(factor.t());
          gradient.mm(factor);
          gradient.t().mm(input);
        });
  }

  /// Scores and values forward; backward the scores again, and the gradients of probabilities, values, queries, keys.
  void add_attention(int64_t heads, int64_t size) {
    const auto lengths = batch_.segment_lengths.empty()
                             ? std::vector<int64_t>(static_cast<size_t>(batch_.input_ids_BS.size(0)), batch_.input_ids_BS.size(1))
                             : batch_.segment_lengths;
    for (const int64_t length : lengths) {
      products_.push_back([x = numbers({heads, length, size}), p = numbers({heads, length, length})] {
        for (int i = 0; i < 3; ++i) x.bmm(x.transpose(1, 2));
        for (int i = 0; i < 4; ++i) p.bmm(x);
      });
    }
  }

  /// Until the device has done what it was given.
  void wait() const { at::zeros({}, at::TensorOptions(device_)).item(); }

  /// Trained parameters under the peer's names.
  std::vector<std::pair<std::string, at::Tensor>> trained() {
    std::vector<std::pair<std::string, at::Tensor>> found;
    if (adapters_) {
      const bool has_bare_factors = std::holds_alternative<AdaLoraOptions>(adapters_.options());
      for (auto [name, parameter] : adapters_.named_parameters()) {
        name.replace(name.find(".default"), 8, "");
        found.emplace_back("base_model.model." + name + (has_bare_factors ? "" : ".weight"), parameter);
      }
    } else {
      for (const auto& entry : model_->named_parameters()) found.emplace_back(entry.key(), entry.value());
    }
    return found;
  }

  at::Device device_ = at::kCPU;
  std::vector<std::function<void()>> products_;
  std::vector<int32_t> first_row_;
  std::shared_ptr<nn::CausalLMImpl> model_;
  AdapterSet adapters_;
  Batch batch_;
  std::optional<train::Trainer> trainer_;
  double learning_rate_ = 0, first_step_seconds_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  prepare_memory();
  const ops::SharedCores shared_cores;
  models::register_model(llama::architecture());
  models::register_model(glm::architecture());
  Options options;
  CLI::App program{"Training steps on request, for benchmarks/compare.py"};
  program.add_option("--model", options.model)->required();
  program.add_option("--adapter", options.adapter, "None: full fine-tuning");
  program.add_flag("--packed", options.packed);
  program.add_option("--rows", options.rows)->required();
  program.add_option("--dtype", options.dtype);
  program.add_option("--device", options.device);
  program.add_option("--threads", options.threads);
  program.add_option("--lr", options.lr);
  program.add_option("--quantize", options.quantize, "The base in few bits: nf4, fp4 or int8");
  program.add_option("--prompt-lookup-num-tokens", options.prompt_lookup_num_tokens, "Of decoding");
  CLI11_PARSE(program, argc, argv);

  Run run(options);
  std::string word, argument;
  while (std::cin >> word && word != "quit") {
    std::cin >> argument;
    if (word == "step") run.steps(std::atoi(argument.c_str()));
    if (word == "grads") run.gradients(argument);
    if (word == "products") run.products(std::atoi(argument.c_str()));
    if (word == "generate") run.generate(std::atoi(argument.c_str()), options.prompt_lookup_num_tokens);
  }
}
