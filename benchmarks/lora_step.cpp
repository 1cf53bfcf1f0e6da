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
#include "lora/io/dtype.h"
#include "lora/io/safetensors.h"
#include "lora/lora.h"
#include "lora/models/llama.h"

namespace {

using namespace lora;

struct Options {
  std::string model, adapter, rows, dtype = "bf16";
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
    model_ = llama::load(options.model, {.device = at::kCPU, .dtype = dtype});
    adapters_ = load_adapter(*model_, options.adapter);
    freeze_base(*model_, adapters_);
    const auto dataset = data::load_dataset(options.rows, {.format = "tokens"}, nullptr);
    std::vector<const data::Example*> examples;
    for (const auto& example : dataset.examples) examples.push_back(&example);
    batch_ = data::collate(examples, 0);
    trainer_.emplace(model_, adapters_, train::TrainerOptions{.steps = 1'000'000, .learning_rate = options.lr});
  }

  void steps(int count) {
    std::vector<double> wall, cpu;
    double loss = 0;
    for (int i = 0; i < count; ++i) {
      const Stopwatch watch;
      const double cpu_before = cpu_seconds();
      loss = trainer_->step({&batch_, 1}).loss;
      wall.push_back(watch.seconds());
      cpu.push_back(cpu_seconds() - cpu_before);
    }
    if (first_step_seconds_ == 0) first_step_seconds_ = seconds_since_start();
    fmt::print("{{\"wall\": [{}], \"cpu\": [{}], \"loss\": {}, \"first_step_seconds\": {}, \"peak_memory_bytes\": {}}}\n",
               fmt::join(wall, ", "), fmt::join(cpu, ", "), loss, first_step_seconds_, peak_process_bytes());
    std::fflush(stdout);
  }

  void gradients(const std::string& path) {
    const at::Tensor loss = nn::causal_lm_loss_sum(*model_, batch_) / batch_.num_targets;
    loss.backward();
    io::NamedTensors tensors;
    for (auto [name, parameter] : adapters_.named_parameters()) {
      name.replace(name.find(".default"), 8, "");
      tensors.emplace_back("base_model.model." + name + ".weight", parameter.grad().clone());
      parameter.mutable_grad() = at::Tensor();
    }
    io::save_safetensors(path, tensors);
    fmt::print("{{\"loss\": {}, \"peak_memory_bytes\": {}}}\n", loss.item<double>(), peak_process_bytes());
    std::fflush(stdout);
  }

 private:
  std::shared_ptr<llama::LlamaForCausalLMImpl> model_;
  AdapterSet adapters_;
  Batch batch_;
  std::optional<train::Trainer> trainer_;
  double first_step_seconds_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App program{"Training steps on request, for benchmarks/compare.py"};
  program.add_option("--model", options.model)->required();
  program.add_option("--adapter", options.adapter)->required();
  program.add_option("--rows", options.rows)->required();
  program.add_option("--dtype", options.dtype);
  program.add_option("--threads", options.threads);
  program.add_option("--lr", options.lr);
  CLI11_PARSE(program, argc, argv);

  Run run(options);
  std::string word, argument;
  while (std::cin >> word && word != "quit") {
    std::cin >> argument;
    if (word == "step") run.steps(std::atoi(argument.c_str()));
    if (word == "grads") run.gradients(argument);
  }
}
