#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <optional>
#include <utility>

#include "cli/adapter_setup.h"
#include "cli/bench_peer.h"
#include "cli/command.h"
#include "cli/options.h"
#include "cli/run_setup.h"
#include "core/check.h"
#include "formats/json.h"
#include "lora/adapters/adapter_io.h"
#include "lora/core/file.h"
#include "lora/core/random.h"
#include "lora/core/stopwatch.h"
#include "lora/core/text.h"
#include "lora/data/collate.h"
#include "lora/generate/generate.h"
#include "lora/io/dtype.h"
#include "lora/io/safetensors.h"
#include "lora/nn/loss.h"
#include "lora/ops/autocast.h"
#include "lora/ops/device.h"
#include "lora/train/speed_of_light.h"

namespace lora::cli {
namespace {

using config::RunConfig;
using formats::OrderedJson;

/// What runs without a run file: a Llama of 134M random parameters and random rows.
constexpr const char* kBuiltInRun =
    R"(model: {arch: llama, dtype: bf16, vocab_size: 32000, hidden_size: 768, intermediate_size: 2048,
        num_hidden_layers: 12, num_attention_heads: 12, max_position_embeddings: 2048}
adapter: {method: lora, r: 8, lora_alpha: 16, target_modules: [q_proj, v_proj]}
data: {format: tokens, train: {path: rows.jsonl, shuffle: false}, max_length: 128}
train: {micro_batch: 4}
run: {output_dir: out}
)";

constexpr int64_t kPromptTokens = 16;
/// So small that both sides' gradients stay those of the same weights, however many steps they have done.
constexpr double kLearningRate = 1e-12;

struct BenchCommand {
  std::string run_file, output, peer, peer_script = "benchmarks/peers/peft_step.py", peer_mode = "eager";
  std::vector<std::string> overrides, arguments;
  int64_t steps = 9, new_tokens = 64;
  int threads = 0;
  bool json = false;

  int run() const;
};

/// A folder of its own below the system's for temporary files, removed with what is in it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "lora-bench-XXXXXX").string();
    require<IoError>(::mkdtemp(name.data()) != nullptr, "[bench] a temporary folder must be made; {} cannot be written",
                     std::filesystem::temp_directory_path().string());
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const Path& path() const { return path_; }

 private:
  Path path_;
};

double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

/// Seconds of each measurement.
struct Times {
  std::vector<double> wall, cpu;
  double best_wall() const { return wall.empty() ? 0 : *std::ranges::min_element(wall); }
  void add(double wall_seconds, double own_cpu_seconds) {
    wall.push_back(wall_seconds);
    cpu.push_back(own_cpu_seconds);
  }
};

std::string row_line(const std::vector<int32_t>& ids) { return fmt::format("{{\"input_ids\": [{}]}}\n", fmt::join(ids, ", ")); }

std::string random_rows(int64_t rows, int64_t length, int64_t vocabulary) {
  SplitMix64 random(0);
  std::string text;
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < length; ++i) {
      ids.push_back(static_cast<int32_t>(random.uniform() * static_cast<double>(vocabulary)));
    }
    text += row_line(ids);
  }
  return text;
}

RunConfig load_config(const BenchCommand& command, const Path& folder) {
  const Path here = std::filesystem::current_path();
  if (!command.run_file.empty()) return config::load_run_config(command.run_file, command.overrides, here, "");
  write_file_atomically(folder / "run.yaml", kBuiltInRun);
  return config::load_run_config(folder / "run.yaml", command.overrides, here, "");
}

/// The built-in run's weights and rows as files, which runs begin with: drawing them is not what is measured.
RunConfig with_random_files(RunConfig config, const Path& folder) {
  const auto model = make_model(config, parse_device(config.run.device));
  const int64_t length = config.data.max_length.value_or(model->max_positions());
  config.data.train.path = folder / "rows.jsonl";  // wherever the user's rows are: those are not touched
  write_file_atomically(*config.data.train.path, random_rows(config.train.micro_batch, length, model->vocab_size()));
  const Path directory = folder / "model";
  std::filesystem::create_directories(directory);
  architecture_of(config).save(*model, directory, {});
  config.model.path = directory;  // a loaded model now
  config.model.arch = std::nullopt;
  config.model.fields.clear();
  return config;
}

/// Where a run has kept its tokens; none where keeping them would leave something behind that nobody asked for.
std::optional<Path> existing_token_cache(const RunConfig& config) {
  const Path directory = token_cache_dir(config);
  std::error_code error;
  if (config.data.cache_dir || std::filesystem::is_directory(directory, error)) return directory;
  return std::nullopt;
}

/// Our side: the run file's model, adapter and first rows, all of whose tokens are targets.
class Ours {
 public:
  explicit Ours(const RunConfig& config) : config_(config), device_(parse_device(config.run.device)) {
    model_ = make_model(config, device_);
    const auto tokenizer = make_tokenizer(config);
    read_rows(tokenizer.get());
    adapters_ = make_adapters(config, *model_, tokenizer.get(), 1'000'000);
    randomize_b();
  }

  void begin() {
    freeze_report_ = freeze(config_, *model_, adapters_);
    auto options = trainer_options(config_, device_, 1'000'000);
    options.learning_rate = kLearningRate;
    options.schedule = {};
    amp_dtype_ = options.amp_dtype;
    trainer_.emplace(model_, adapters_, options);
  }

  void step() {
    const Stopwatch watch;
    const double cpu = cpu_seconds();
    loss_ = trainer_->step({&batch_, 1}).loss;
    times.add(watch.seconds(), cpu_seconds() - cpu);
  }

  double gradients(const Path& file) {
    const AutocastGuard autocast(device_.type(), amp_dtype_);
    const at::Tensor loss = nn::causal_lm_loss_sum(*model_, batch_.to(device_)) / model_->num_targets(batch_);
    loss.backward();
    io::NamedTensors tensors;
    for (auto [name, parameter] : trained()) {
      tensors.emplace_back(name, parameter.grad().clone());
      parameter.mutable_grad() = at::Tensor();
    }
    io::save_safetensors(file, tensors);
    return loss.item<double>();
  }

  void generate(int64_t count) {
    model_->eval();
    nn::restore_weights(*model_);  // those that training packed: a program that generates has the plain ones
    generate::GenerateOptions options;
    options.sampling.temperature = 0;
    options.max_new_tokens = count;
    const Stopwatch watch;
    const double cpu = cpu_seconds();
    const auto result = generate::complete(*model_, prompt_, options, device_);
    generation.add(watch.seconds(), cpu_seconds() - cpu);
    generated_ = static_cast<int64_t>(result.token_ids.size());
  }

  /// Model, adapter and rows in the layouts that a peer reads; its words for them.
  std::vector<std::string> save_for_peer(const Path& folder) {
    const Path model = folder / "peer_model", rows = folder / "peer_rows.jsonl";
    std::filesystem::create_directories(model);
    architecture_of(config_).save(*model_, model, {});
    std::string text;
    for (const auto& row : rows_) text += row_line(row.input_ids);
    write_file_atomically(rows, text);
    std::vector<std::string> words = {"--model",     model.string(), "--rows",
                                      rows.string(), "--lr",         fmt::format("{}", kLearningRate)};
    if (!adapters_) return words;
    std::filesystem::create_directories(folder / "adapter");
    save_adapters(adapters_, folder / "adapter");
    words.insert(words.end(), {"--adapter", (folder / "adapter").string()});
    return words;
  }

  double flops() const { return train::step_flops(*model_, {&batch_, 1}); }
  double peak_flops() const {
    const auto own = model_->stored_dtype();
    return train::matmul_flops_per_second(device_, amp_dtype_ == at::kFloat ? own : amp_dtype_);
  }

  const RunConfig& config() const { return config_; }
  const Batch& batch() const { return batch_; }
  int64_t num_targets() const { return model_->num_targets(batch_); }
  const at::Device& device() const { return device_; }
  const FreezeReport& parameters() const { return freeze_report_; }
  const std::string dtype() const { return std::string(short_name(io::from_torch(model_->stored_dtype()))); }
  int64_t generated() const { return generated_; }
  double loss() const { return loss_; }

  Times times, generation;

 private:
  void read_rows(const data::Tokenizer* tokenizer) {
    const auto dataset = make_dataset(config_, *config_.data.train.path, *model_, tokenizer, existing_token_cache(config_));
    const int64_t count = std::min(dataset.size(), config_.train.micro_batch);
    for (int64_t row = 0; row < count; ++row) {
      rows_.push_back(dataset.example(row));
      rows_.back().labels = rows_.back().input_ids;
    }
    std::vector<const data::Example*> examples;
    for (const auto& row : rows_) examples.push_back(&row);
    batch_ = config_.data.packing ? data::collate_packed(examples, 0) : data::collate(examples, 0);
    const auto& first = rows_.front().input_ids;
    prompt_.assign(first.begin(), first.begin() + std::min<int64_t>(kPromptTokens, static_cast<int64_t>(first.size())));
  }

  /// Fresh B factors are zero, and with them the gradients of A, which could not be compared.
  void randomize_b() {
    if (!adapters_) return;
    const at::NoGradGuard no_grad;
    for (auto& [name, parameter] : adapters_.named_parameters()) {
      if (name.find("lora_B") != std::string::npos) at::Tensor(parameter).normal_(0, 0.02);
    }
  }

  /// Trained parameters under the peer's names.
  std::vector<std::pair<std::string, at::Tensor>> trained() {
    std::vector<std::pair<std::string, at::Tensor>> found;
    if (!adapters_) {
      for (const auto& entry : model_->named_parameters()) {
        if (entry.value().grad().defined()) found.emplace_back(entry.key(), entry.value());
      }
      return found;
    }
    for (auto [name, parameter] : adapters_.named_parameters()) {
      if (!parameter.grad().defined()) continue;
      const size_t place = name.find(".default");
      require<ConfigError>(place != std::string::npos,
                           "[bench] beside a peer only an adapter's own factors may train; found {:?}; leave out modules_to_save "
                           "and bias",
                           name);
      name.erase(place, std::string_view(".default").size());
      found.emplace_back("base_model.model." + name + ".weight", parameter);
    }
    return found;
  }

  RunConfig config_;
  at::Device device_;
  at::ScalarType amp_dtype_ = at::kFloat;
  std::shared_ptr<nn::CausalLMImpl> model_;
  AdapterSets adapters_;
  FreezeReport freeze_report_;
  std::vector<data::Example> rows_;
  std::vector<int64_t> prompt_;
  Batch batch_;
  std::optional<train::Trainer> trainer_;
  double loss_ = 0;
  int64_t generated_ = 0;
};

struct Agreement {
  double worst_cosine = 1, loss_ours = 0, loss_peer = 0;
};

/// Throws when the two sides do not compute the same thing.
Agreement compare_gradients(Ours& ours, BenchPeer& peer, const Path& folder) {
  Agreement found;
  found.loss_ours = ours.gradients(folder / "ours.safetensors");
  found.loss_peer = peer.gradients(folder / "peer.safetensors");
  const auto mine = io::load_safetensors(folder / "ours.safetensors");
  const auto theirs = io::load_safetensors(folder / "peer.safetensors");
  std::string worst;
  for (const auto& [name, gradient] : mine) {
    const auto twin = theirs.find(name);
    require<DataError>(twin != theirs.end() && twin->second.sizes() == gradient.sizes() && theirs.size() == mine.size(),
                       "[bench] both sides must train the same parameters; found {:?} on ours alone, or in another shape", name);
    const at::Tensor a = gradient.to(at::kDouble).flatten(), b = twin->second.to(at::kDouble).flatten();
    const double measured = (a.dot(b) / (a.norm() * b.norm())).item<double>();
    const double cosine = std::isfinite(measured) ? measured : -1;  // of a gradient of zeros, or not finite
    if (cosine >= found.worst_cosine) continue;
    found.worst_cosine = cosine;
    worst = name;
  }
  const bool agree = found.worst_cosine >= 0.999 && std::abs(found.loss_ours - found.loss_peer) <= 1e-3;
  require<DataError>(agree,
                     "[bench] nothing is reported unless both sides compute the same: gradients at a cosine of 0.999, losses "
                     "within 1e-3; found {:.5f} ({}), losses {:.5f} and {:.5f}",
                     found.worst_cosine, worst, found.loss_ours, found.loss_peer);
  return found;
}

/// The peer's measurements.
struct PeerTimes {
  Times steps, generation;
  Agreement agreement;
  double first_step_seconds = 0;
  uint64_t peak_memory_bytes = 0;
};

double ratio(const Times& peer, const Times& ours, bool by_cpu) {
  const double mine = median(by_cpu ? ours.cpu : ours.wall);
  return mine > 0 ? median(by_cpu ? peer.cpu : peer.wall) / mine : 0;
}

OrderedJson seconds_json(const Times& times) { return {{"wall_seconds", times.wall}, {"cpu_seconds", times.cpu}}; }

OrderedJson to_json(const BenchCommand& command, const Ours& ours, double first_step_seconds, uint64_t peak_memory,
                    double peak_flops, const PeerTimes* peer) {
  const auto tokens = static_cast<double>(ours.batch().num_tokens);
  const double step = median(ours.times.wall);
  OrderedJson training = seconds_json(ours.times);
  training["tokens_per_second"] = tokens / step;
  training["tokens_per_second_best"] = tokens / ours.times.best_wall();
  training["sol_percent"] = 100 * ours.flops() / step / peak_flops;
  training["peak_flops_per_second"] = peak_flops;
  training["loss"] = ours.loss();
  training["first_step_seconds"] = first_step_seconds;
  OrderedJson generation = seconds_json(ours.generation);
  generation["new_tokens"] = ours.generated();
  generation["tokens_per_second"] = static_cast<double>(ours.generated()) / std::max(median(ours.generation.wall), 1e-9);
  double load = 0;
  ::getloadavg(&load, 1);
  OrderedJson result = {{"command", fmt::format("{}", fmt::join(command.arguments, " "))},
                        {"version", LORA_VERSION},
                        {"commit", LORA_COMMIT},
                        {"machine", describe_machine(ours.device())},
                        {"load", load},
                        {"threads", at::get_num_threads()},
                        {"parameters", ours.parameters().total},
                        {"trainable_parameters", ours.parameters().trainable},
                        {"dtype", ours.dtype()},
                        {"micro_batch", ours.batch().input_ids_BS.size(0)},
                        {"tokens", ours.batch().num_tokens},
                        {"targets", ours.num_targets()},
                        {"training", training},
                        {"generation", generation},
                        {"peak_memory_bytes", peak_memory}};
  if (peer == nullptr) return result;
  OrderedJson other = {
      {"mode", command.peer_mode}, {"training", seconds_json(peer->steps)}, {"generation", seconds_json(peer->generation)}};
  other["first_step_seconds"] = peer->first_step_seconds;
  other["peak_memory_bytes"] = peer->peak_memory_bytes;
  other["worst_gradient_cosine"] = peer->agreement.worst_cosine;
  other["loss"] = peer->agreement.loss_peer;
  other["ratio_wall"] = ratio(peer->steps, ours.times, false);
  other["ratio_cpu"] = ratio(peer->steps, ours.times, true);
  other["ratio_wall_best"] = peer->steps.best_wall() / ours.times.best_wall();
  other["ratio_generation_wall"] = ratio(peer->generation, ours.generation, false);
  other["ratio_memory"] = static_cast<double>(peak_memory) / static_cast<double>(std::max<uint64_t>(peer->peak_memory_bytes, 1));
  other["ratio_first_step"] = first_step_seconds / std::max(peer->first_step_seconds, 1e-9);
  result["peer"] = other;
  return result;
}

void print_table(const OrderedJson& result, bool draws_weights) {
  const auto& training = result.at("training");
  const auto& generation = result.at("generation");
  const auto number = [](const OrderedJson& from, const char* name) { return from.at(name).get<double>(); };
  fmt::print("{}\n", result.at("machine").get<std::string>());
  fmt::print("{} parameters, {} trained, {}; {} rows, {} tokens a step\n\n",
             with_thousands(result.at("parameters").get<int64_t>()),
             with_thousands(result.at("trainable_parameters").get<int64_t>()), result.at("dtype").get<std::string>(),
             result.at("micro_batch").get<int64_t>(), result.at("tokens").get<int64_t>());
  fmt::print("training      {:>10.1f} tokens/s   best {:.1f}; {:.1f} % of this machine's {:.0f} GFLOP/s\n",
             number(training, "tokens_per_second"), number(training, "tokens_per_second_best"), number(training, "sol_percent"),
             number(training, "peak_flops_per_second") / 1e9);
  fmt::print("generation    {:>10.1f} tokens/s   greedy, {} tokens\n", number(generation, "tokens_per_second"),
             generation.at("new_tokens").get<int64_t>());
  fmt::print("first step    {:>10.2f} s          from the start of the command{}\n", number(training, "first_step_seconds"),
             draws_weights ? ", without drawing the weights" : "");
  fmt::print("memory        {:>10.0f} MiB        peak\n", number(result, "peak_memory_bytes") / (1 << 20));
  if (!result.contains("peer")) return;
  const auto& peer = result.at("peer");
  fmt::print(
      "\nagainst the peer ({}): training {:.2f} x wall ({:.2f} x CPU, best {:.2f} x), generation {:.2f} x, memory {:.2f}, "
      "first step {:.2f}; worst gradient cosine {:.5f}\n",
      peer.at("mode").get<std::string>(), number(peer, "ratio_wall"), number(peer, "ratio_cpu"), number(peer, "ratio_wall_best"),
      number(peer, "ratio_generation_wall"), number(peer, "ratio_memory"), number(peer, "ratio_first_step"),
      number(peer, "worst_gradient_cosine"));
}

int BenchCommand::run() const {
  const Stopwatch since_start;
  const TemporaryFolder folder;
  RunConfig config = load_config(*this, folder.path());
  const int64_t own_threads = config.run.threads > 0 ? config.run.threads : at::get_num_threads();
  at::set_num_threads(threads > 0 ? threads : static_cast<int>(own_threads));
  seed_generators(static_cast<uint64_t>(config.run.seed));

  double drawing_seconds = 0;
  if (run_file.empty()) {
    const Stopwatch watch;
    config = with_random_files(std::move(config), folder.path());
    drawing_seconds = watch.seconds();
  }
  Ours ours(config);
  std::optional<BenchPeer> other;
  PeerTimes peer_times;
  std::vector<std::string> words;
  ours.begin();
  ours.step();
  const double first_step_seconds = since_start.seconds() - drawing_seconds;
  if (!peer.empty()) {
    words = ours.save_for_peer(folder.path());
    std::vector<std::string> peer_command = {peer, peer_script};
    peer_command.insert(peer_command.end(), words.begin(), words.end());
    peer_command.insert(peer_command.end(), {"--mode", peer_mode, "--threads", fmt::format("{}", at::get_num_threads())});
    other.emplace(peer_command, at::get_num_threads());
    peer_times.first_step_seconds = other->step().first_step_seconds;
    peer_times.agreement = compare_gradients(ours, *other, folder.path());
  }
  ours.step();
  ours.times = {};  // the first two steps make what later ones use again
  for (int64_t i = 0; i < steps; ++i) {
    ours.step();
    if (!other) continue;
    const auto step = other->step();
    peer_times.steps.add(step.wall_seconds, step.cpu_seconds);
    peer_times.peak_memory_bytes = step.peak_memory_bytes;
  }
  const uint64_t peak_memory = peak_process_bytes();
  for (int64_t i = 0; new_tokens > 0 && i < std::min<int64_t>(steps, 3); ++i) {
    ours.generate(new_tokens);
    if (!other) continue;
    const auto result = other->generate(new_tokens);
    peer_times.generation.add(result.wall_seconds, result.cpu_seconds);
  }

  const OrderedJson result =
      to_json(*this, ours, first_step_seconds, peak_memory, ours.peak_flops(), other ? &peer_times : nullptr);
  if (!output.empty()) write_file_atomically(output, result.dump(1) + "\n");
  if (json) {
    fmt::print("{}\n", result.dump());
  } else {
    print_table(result, run_file.empty());
  }
  return kDone;
}

}  // namespace

void add_bench_command(CLI::App& program, Action& action) {
  auto* command = program.add_subcommand("bench", "Measures training and generation, alone or against a Python peer");
  command->footer(
      "The first step is timed from the start of the command: reading the model and the rows, preparing, one step.\n"
      "Without a run file, random weights and rows are drawn and saved before that, which is not counted.\n"
      "Example: lora bench -c run.yaml --steps 9 --json\n"
      "         lora bench --peer .venv-peers/bin/python --peer-script benchmarks/peers/peft_step.py");
  auto state = std::make_shared<BenchCommand>();
  command->add_option("-c,--config", state->run_file,
                      "Run file whose model, adapter and first rows are measured (default: 134M random parameters)");
  command->add_option("--set", state->overrides, "section.key=value, over the run file")
      ->take_all()
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_option("--steps", state->steps, "Steps to measure")->check(CLI::Range(1, 100'000))->capture_default_str();
  command->add_option("--new-tokens", state->new_tokens, "Tokens to generate; 0: none")
      ->check(CLI::Range(0, 100'000))
      ->capture_default_str();
  command->add_option("--threads", state->threads, "Threads (default: run.threads, or what the machine has)")
      ->check(CLI::Range(1, 1024));
  command->add_option("--peer", state->peer, "Python with torch, transformers and peft, to run the same in turns");
  command->add_option("--peer-script", state->peer_script, "The peer's program")->capture_default_str();
  command->add_option("--peer-mode", state->peer_mode, "eager, compile or autocast")
      ->check(CLI::IsMember({"eager", "compile", "autocast"}))
      ->capture_default_str();
  command->add_option("--output", state->output, "File for the JSON object");
  command->add_flag("--json", state->json, "Print one JSON object");
  add_log_options(*command);
  command->callback([state, &action, &program] {
    state->arguments = {program.get_name(), "bench"};
    for (const auto* option : program.get_subcommand("bench")->get_options()) {
      for (const auto& value : option->results()) state->arguments.insert(state->arguments.end(), {option->get_name(), value});
    }
    action = [state] { return state->run(); };
  });
}

}  // namespace lora::cli
