// Our side of the comparison with the Python peers: the same pipe protocol as peers/peft_step.py.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <torch/utils.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <iostream>

#include "lora/core/stopwatch.h"
#include "lora/data/collate.h"
#include "lora/data/dataset.h"
#include "lora/generate/generate.h"
#include "lora/io/dtype.h"
#include "lora/io/safetensors.h"
#include "lora/lora.h"
#include "lora/models/llama.h"

namespace {

using namespace lora;

struct Options {
  std::string model, adapter, rows, dtype = "bf16", device = "cpu";
  bool packed = false;
  int threads = 1;
  double lr = 1e-4;
};

double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

double seconds_since_start() {
  const char* started = std::getenv("BENCH_STARTED");
  const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  return started == nullptr ? 0 : now - std::atof(started);
}

/// The model, its adapter and the fixed rows.
class Run {
 public:
  explicit Run(const Options& options) {
    at::set_num_threads(options.threads);
    const auto dtype = io::to_torch(parse_float_dtype(options.dtype, "--dtype"), "--dtype");
    device_ = parse_device(options.device);
    model_ = llama::load(options.model, {.device = device_, .dtype = dtype});
    model_->fast_paths.release_plain = true;
    if (options.adapter.empty()) {
      train_all(*model_);
    } else {
      adapters_ = load_adapter(*model_, options.adapter);
      freeze_base(*model_, adapters_);
    }
    const auto dataset = data::load_dataset(options.rows, {.format = "tokens"}, nullptr);
    std::vector<const data::Example*> examples;
    for (const auto& example : dataset.examples) examples.push_back(&example);
    batch_ = options.packed ? data::collate_packed(examples, 0) : data::collate(examples, 0);
    first_row_ = dataset.examples.front().input_ids;
    trainer_.emplace(model_, adapters_,
                     train::TrainerOptions{.steps = 1'000'000, .learning_rate = options.lr, .device = device_});
  }

  void steps(int count) {
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
    const at::Tensor loss = nn::causal_lm_loss_sum(*model_, batch_.to(device_)) / batch_.num_targets;
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
  /// for every target. The lowest layer needs no gradient of its input.
  void products(int count) {
    if (products_.empty()) {
      build_products();
      for (const auto& product : products_) product.run();  // the transposes are made at their first use
    }
    double wall = 0, cpu = 0;
    for (int i = 0; i < count; ++i) {
      const torch::NoGradGuard no_grad;
      const Stopwatch watch;
      const double cpu_before = cpu_seconds();
      for (const auto& product : products_) product.run();
      wait();
      wall += watch.seconds();
      cpu += cpu_seconds() - cpu_before;
    }
    fmt::print("{{\"wall\": {}, \"cpu\": {}, \"peak_memory_bytes\": {}}}\n", wall / count, cpu / count, peak_bytes(device_));
    std::fflush(stdout);
  }

  void generate(int count) {
    model_->eval();
    lora::generate::GenerateOptions options;
    options.sampling.temperature = 0;
    options.max_new_tokens = count;
    const std::vector<int64_t> prompt(first_row_.begin(), first_row_.begin() + 16);
    const Stopwatch watch;
    const double cpu_before = cpu_seconds();
    const auto result = lora::generate::complete(*model_, prompt, options, device_);
    fmt::print("{{\"wall\": {}, \"cpu\": {}, \"tokens\": [{}], \"peak_memory_bytes\": {}}}\n", watch.seconds(),
               cpu_seconds() - cpu_before, fmt::join(result.token_ids, ", "), peak_bytes(device_));
    std::fflush(stdout);
  }

 private:
  /// One weight's product with `input` and the gradient's with it.
  struct Product {
    std::shared_ptr<const ops::PackedWeight> weight;  ///< null on a GPU, which multiplies by the plain one
    at::Tensor input, gradient, plain;
    bool backward;
    void run() const {
      if (weight == nullptr) {
        input.mm(plain.t());
        if (backward) gradient.mm(plain);
        return;
      }
      weight->times(input);
      if (backward) weight->times_transposed(gradient);
    }
  };

  void build_products() {
    const auto& config = model_->config;
    const int64_t hidden = config.hidden_size, inner = config.intermediate_size, heads = config.num_attention_heads * config.head_dim,
                  keys = config.num_key_value_heads * config.head_dim;
    for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
      add_product(heads + 2 * keys, hidden, batch_.num_tokens, layer > 0);
      add_product(hidden, heads, batch_.num_tokens, true);
      add_product(2 * inner, hidden, batch_.num_tokens, true);
      add_product(hidden, inner, batch_.num_tokens, true);
    }
    add_product(config.vocab_size, hidden, batch_.num_targets, true);
  }

  void add_product(int64_t outputs, int64_t inputs, int64_t rows, bool backward) {
    const auto bf16 = at::TensorOptions(device_).dtype(at::kBFloat16);
    if (!device_.is_cpu()) {
      products_.push_back({nullptr, at::randn({rows, inputs}, bf16), at::randn({rows, outputs}, bf16),
                           at::randn({outputs, inputs}, bf16), backward});
      return;
    }
    products_.push_back({std::make_shared<const ops::PackedWeight>(
                             std::vector<at::Tensor>{at::randn({outputs, inputs}).to(at::kBFloat16)}, at::kBFloat16),
                         at::ones({rows, inputs}, bf16), at::ones({rows, outputs}, bf16), at::Tensor(), backward});
  }

  /// Until the device has done what it was given.
  void wait() const { at::zeros({}, at::TensorOptions(device_)).item(); }

  /// Trained parameters under the peer's names.
  std::vector<std::pair<std::string, at::Tensor>> trained() {
    std::vector<std::pair<std::string, at::Tensor>> found;
    if (adapters_) {
      for (auto [name, parameter] : adapters_.named_parameters()) {
        name.replace(name.find(".default"), 8, "");
        found.emplace_back("base_model.model." + name + ".weight", parameter);
      }
    } else {
      for (const auto& entry : model_->named_parameters()) found.emplace_back(entry.key(), entry.value());
    }
    return found;
  }

  at::Device device_ = at::kCPU;
  std::vector<Product> products_;
  std::vector<int32_t> first_row_;
  std::shared_ptr<llama::LlamaForCausalLMImpl> model_;
  AdapterSet adapters_;
  Batch batch_;
  std::optional<train::Trainer> trainer_;
  double first_step_seconds_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  prepare_memory();
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
  CLI11_PARSE(program, argc, argv);

  Run run(options);
  std::string word, argument;
  while (std::cin >> word && word != "quit") {
    std::cin >> argument;
    if (word == "step") run.steps(std::atoi(argument.c_str()));
    if (word == "grads") run.gradients(argument);
    if (word == "products") run.products(std::atoi(argument.c_str()));
    if (word == "generate") run.generate(std::atoi(argument.c_str()));
  }
}
