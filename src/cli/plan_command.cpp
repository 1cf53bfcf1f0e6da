#include <fmt/format.h>

#include <algorithm>

#include "cli/adapter_setup.h"
#include "cli/command.h"
#include "cli/options.h"
#include "cli/run_setup.h"
#include "core/check.h"
#include "formats/json.h"
#include "io/weight_files.h"
#include "lora/core/text.h"
#include "lora/data/packing.h"
#include "lora/io/dtype.h"
#include "lora/io/model_files.h"
#include "lora/ops/device.h"
#include "lora/ops/frozen_linear.h"
#include "lora/ops/memory.h"
#include "lora/ops/quantized.h"
#include "lora/ops/segments.h"
#include "lora/train/memory_plan.h"

namespace lora::cli {
namespace {

using config::RunConfig;
using formats::OrderedJson;

struct PlanCommand {
  RunFileOptions run_file;
  std::string memory;
  bool json = false;

  int run() const;
};

/// The plan of a run file, with what it was made from.
struct Planned {
  RunConfig config;
  c10::DeviceType device = c10::kCPU;
  train::MemoryInputs inputs;
  train::MemoryPlan plan;
  uint64_t memory_bytes = 0;
  int64_t largest_micro_batch = 0;
  std::string row_source;  ///< where the tokens of a row come from

  bool fits() const { return plan.peak_bytes <= memory_bytes; }
  int64_t tokens() const { return inputs.micro_batch * inputs.row_tokens; }
};

/// A plan needs no device: cuda may be one of another machine.
c10::DeviceType planned_device(const std::string& name) {
  return name.starts_with("cuda") ? c10::kCUDA : parse_device(name).type();
}

uint64_t available_memory(const PlanCommand& command, const std::string& device) {
  if (!command.memory.empty()) {
    const uint64_t bytes = parse_bytes(command.memory, "--memory");
    require<ConfigError>(bytes > 0, "[--memory] the memory must be positive; found {}; use for example 24GiB", command.memory);
    return bytes;
  }
  const auto devices = existing_devices();
  require<ConfigError>(!device.starts_with("cuda") || devices.size() > 1,
                       "[--memory] the memory of a device that is not here must be given; found run.device {}; add for "
                       "example --memory 80GiB",
                       device);
  return total_memory(parse_device(device));
}

/// Numbers that quantising converts to fp32 at a time (ops/quantized.cpp).
constexpr uint64_t kQuantizedPiece = uint64_t{1} << 22;

/// A plain weight while it is quantised: the largest of the layers, and a piece of it in fp32.
uint64_t quantizing_bytes(const nn::DecoderShapes& shapes, at::ScalarType dtype) {
  uint64_t largest = 0;
  for (const auto& layer : shapes.layers) {
    for (const auto& shape : layer.gate_up) largest = std::max(largest, static_cast<uint64_t>(shape.numbers()));
  }
  const uint64_t piece = dtype == at::kFloat ? 0 : std::min(largest, kQuantizedPiece) * sizeof(float);
  return largest * c10::elementSize(dtype) + piece;
}

/// Bytes of the largest weight that is stored in another type than the model has, or has to be quantised.
uint64_t loading_bytes(const RunConfig& config, const nn::DecoderShapes& shapes, at::ScalarType dtype) {
  if (config.adapter.quantization.bits) return quantizing_bytes(shapes, dtype);
  uint64_t largest = 0;
  if (!config.model.path || !io::has_weight_files(*config.model.path)) return largest;
  const io::ModelFiles files(*config.model.path);
  for (const auto& name : files.names()) {
    const auto& entry = files.entry(name);
    if (entry.dtype != io::from_torch(dtype)) largest = std::max(largest, entry.end - entry.begin);
  }
  return largest;
}

int64_t rounded_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// ---- Rows ----

/// Larger files are not read: among so many rows some reach the limit.
constexpr uint64_t kLargestReadFile = 16u << 20;
/// What a token and its label take, a row's end and number, and what text takes for each of its bytes, roughly.
constexpr uint64_t kBytesPerToken = 4, kBytesPerRow = 16, kBytesPerFileByte = 2;

/// What the run file's limits say, before any data is looked at.
int64_t row_limit(const RunConfig& config, int64_t context) {
  if (config.data.format == "adgen" && !config.data.packing) {
    return std::min(config.data.max_source_length + config.data.max_target_length, context);
  }
  return std::min(config.data.max_length.value_or(context), context);
}

uint64_t bytes_of(const data::Dataset& dataset) {
  uint64_t tokens = 0;
  for (int64_t row = 0; row < dataset.size(); ++row) tokens += static_cast<uint64_t>(dataset.length(row));
  return kBytesPerRow * static_cast<uint64_t>(dataset.size()) + kBytesPerToken * tokens;
}

int64_t longest_row(const data::Dataset& dataset) {
  int64_t longest = 0;
  for (int64_t row = 0; row < dataset.size(); ++row) longest = std::max(longest, dataset.length(row));
  return longest;
}

/// The first sequences that share a row, and how attention lays them out.
void look_at_packs(const data::Dataset& dataset, train::MemoryInputs& inputs) {
  const auto packs = data::pack_rows(dataset, inputs.row_tokens);
  std::vector<int64_t> lengths;
  int64_t tokens = 0, longest = 0;
  for (size_t i = 0; i < packs.size(); ++i) {
    int64_t length = 0;
    for (const int64_t row : packs[i]) {
      const int64_t size = dataset.length(row);
      if (static_cast<int64_t>(i) < inputs.micro_batch) lengths.push_back(size);
      length += size;
    }
    if (static_cast<int64_t>(i) < inputs.micro_batch) tokens += length;
    longest = std::max(longest, length);
  }
  const auto segments = ops::segments_of(lengths, at::kCPU);
  inputs.row_tokens = longest;
  inputs.longest_sequence = longest_row(dataset);
  const auto looked_at = std::min(packs.size(), static_cast<size_t>(inputs.micro_batch));
  inputs.sequences_per_row = static_cast<double>(lengths.size()) / static_cast<double>(looked_at);
  inputs.places_per_token = static_cast<double>(segments.index_P.numel()) / static_cast<double>(tokens);
}

/// Tokens of a row: the longest of the data, where they can be looked at, and never more than the limit.
void look_at_rows(const nn::CausalLMImpl& model, Planned& planned) {
  const RunConfig& config = planned.config;
  train::MemoryInputs& inputs = planned.inputs;
  inputs.micro_batch = config.train.micro_batch;
  inputs.packed_rows = config.data.packing;
  inputs.row_tokens = row_limit(config, row_room(config, model));
  planned.row_source = "the limit of the run file";
  const Path& file = *config.data.train.path;
  std::error_code error;
  const uint64_t size = std::filesystem::file_size(file, error);
  if (error || size > kLargestReadFile) {
    inputs.data_bytes = error ? 0 : size * kBytesPerFileByte;
    return;
  }
  const auto tokenizer = make_tokenizer(config);
  const auto dataset = make_dataset(config, file, model, tokenizer.get());
  inputs.data_bytes = bytes_of(dataset);
  planned.row_source = fmt::format("the longest of {}", file.filename().string());
  if (inputs.packed_rows) {
    look_at_packs(dataset, inputs);
  } else {
    inputs.row_tokens = std::min(inputs.row_tokens, longest_row(dataset));
    if (config.train.loss_reduction != "all_positions") {
      inputs.row_tokens = std::min(rounded_up(inputs.row_tokens, 8), row_room(config, model));
    }
  }
}

// ---- The plan ----

Planned make_plan(const PlanCommand& command) {
  Planned planned;
  planned.config = command.run_file.load("");
  const RunConfig& config = planned.config;
  planned.device = planned_device(config.run.device);
  planned.memory_bytes = available_memory(command, config.run.device);

  // On the meta device the real model, adapters and rules, but no weight.
  const auto model = make_model(config, at::kMeta);
  const auto base_dtype = model->stored_dtype();
  constexpr int64_t kAnyNumberOfSteps = 1'000'000'000;
  RunConfig without_text = config;  // which tokens virtual ones begin as takes no memory
  without_text.adapter.prompt_tuning_init = std::nullopt;
  for (auto& one : without_text.more_adapters) one.adapter.prompt_tuning_init = std::nullopt;
  const auto adapters = make_adapters(without_text, *model, nullptr, kAnyNumberOfSteps);
  freeze(config, *model, adapters);
  const auto options = trainer_options(config, at::kMeta, 0);

  train::MemoryInputs& inputs = planned.inputs;
  const auto& architecture = architecture_of(config);
  require<ConfigError>(architecture.shapes != nullptr,
                       "[model] the architecture must say its models' widths to be planned; found {:?}, "
                       "which does not",
                       architecture.name);
  inputs.shapes = architecture.shapes(*model);
  inputs.parameters = train::parameter_memory(*model, adapters, options.optimizer);
  inputs.fast_paths = model->fast_paths;
  inputs.recompute = model->recompute;
  inputs.device = planned.device;
  inputs.amp_dtype = options.amp_dtype;
  const auto product_dtype = options.amp_dtype == at::kFloat ? inputs.shapes.stream_dtype : options.amp_dtype;
  inputs.packing_pays = planned.device == c10::kCPU && ops::PackedWeight::pays(product_dtype);
  inputs.streams_layers = config.model.offload == "disk" || (config.model.offload == "cpu" && planned.device != c10::kCPU);
  inputs.grad_accum = config.train.grad_accum;
  inputs.loading_bytes = loading_bytes(config, inputs.shapes, base_dtype);
  inputs.saves_base = adapters && !config.freeze.train.empty();
  look_at_rows(*model, planned);
  require<ConfigError>(inputs.micro_batch <= train::kMostTokens / inputs.row_tokens,
                       "[train.micro_batch] a micro-batch must have at most {} tokens; found {} rows of {}; use fewer rows",
                       train::kMostTokens, inputs.micro_batch, inputs.row_tokens);

  planned.plan = train::plan_memory(inputs);
  planned.largest_micro_batch = train::largest_micro_batch(inputs, planned.memory_bytes);
  return planned;
}

/// nf4, fp4 or int8 where weights of the layers are in few bits; null: none.
OrderedJson few_bits_of(const nn::DecoderShapes& shapes) {
  for (const auto& layer : shapes.layers) {
    for (const auto* group : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down}) {
      for (const auto& shape : *group) {
        if (shape.few_bits) return OrderedJson(std::string(name_of(*shape.few_bits)));
      }
    }
  }
  return OrderedJson();
}

std::string dtype_name(at::ScalarType dtype) { return std::string(short_name(io::from_torch(dtype))); }

OrderedJson to_json(const Planned& planned) {
  const auto& plan = planned.plan;
  const auto& inputs = planned.inputs;
  const auto& config = planned.config;
  return {{"mode", *config.run.mode},
          {"device", planned.device == c10::kCPU ? "cpu" : "cuda"},
          {"weights_bytes", plan.parameters.weights_bytes},
          {"packed_bytes", plan.packed_bytes},
          {"adapters_bytes", plan.parameters.adapters_bytes},
          {"gradients_bytes", plan.parameters.gradients_bytes},
          {"optimizer_bytes", plan.parameters.optimizer_bytes},
          {"activations_bytes", plan.activations_bytes},
          {"logits_bytes", plan.logits_bytes},
          {"program_bytes", plan.program_bytes},
          {"tensors_bytes", plan.tensors_bytes},
          {"kept_bytes", plan.kept_bytes},
          {"peak_bytes", plan.peak_bytes},
          {"memory_bytes", planned.memory_bytes},
          {"fits", planned.fits()},
          {"largest_micro_batch", planned.largest_micro_batch},
          {"micro_batch", inputs.micro_batch},
          {"grad_accum", inputs.grad_accum},
          {"tokens_per_row", inputs.row_tokens},
          {"tokens_per_micro_batch", planned.tokens()},
          {"dtype", dtype_name(inputs.shapes.weight_dtype)},
          {"amp_dtype", dtype_name(inputs.amp_dtype)},
          {"recompute", config.train.recompute},
          {"packing", config.data.packing},
          {"offload", config.model.offload},
          {"quantization", few_bits_of(inputs.shapes)},
          {"parameters", plan.parameters.parameters},
          {"trainable_parameters", plan.parameters.trainable}};
}

// ---- The table ----

std::string size_text(uint64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  return mib < 1024 ? fmt::format("{:.1f} MiB", mib) : fmt::format("{:.2f} GiB", mib / 1024);
}

void print_line(const char* part, uint64_t bytes, const std::string& what) {
  fmt::print("{:<14}{:>12}   {}\n", part, size_text(bytes), what);
}

/// The same run with the frozen weights of its layers in 4 bits.
void keep_in_four_bits(train::MemoryInputs& inputs) {
  constexpr QuantizationScheme kScheme{.type = QuantizedType::kNf4, .block_size = 64, .double_quantized = true};
  for (auto& layer : inputs.shapes.layers) {
    for (auto* group : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down}) {
      for (auto& shape : *group) {
        if (shape.trained) continue;
        const auto options = at::TensorOptions(at::kMeta).dtype(shape.dtype);
        const auto form = ops::QuantizedTensor::quantize(at::empty({shape.out, shape.in}, options), kScheme);
        inputs.parameters.weights_bytes -= static_cast<uint64_t>(shape.numbers()) * c10::elementSize(shape.dtype) - form.bytes();
        shape.few_bits = kScheme.type;
      }
    }
  }
}

/// Keys that would make the run smaller, the cheapest first.
std::vector<std::string> advice(const Planned& planned) {
  const auto& config = planned.config;
  std::vector<std::string> lines;
  const auto peak_with = [&](auto change) {
    train::MemoryInputs inputs = planned.inputs;
    change(inputs);
    return size_text(train::plan_memory(inputs).peak_bytes);
  };
  if (planned.largest_micro_batch > 0 && planned.largest_micro_batch < config.train.micro_batch) {
    lines.push_back(fmt::format("train.micro_batch: {} with a larger train.grad_accum gives the same gradients",
                                planned.largest_micro_batch));
  }
  if (config.train.recompute == "none") {
    lines.push_back(fmt::format("train.recompute: selective ({}) or full ({})",
                                peak_with([](auto& inputs) { inputs.recompute = nn::Recompute::kSelective; }),
                                peak_with([](auto& inputs) { inputs.recompute = nn::Recompute::kFull; })));
  } else if (config.train.recompute == "selective") {
    lines.push_back(
        fmt::format("train.recompute: full ({})", peak_with([](auto& inputs) { inputs.recompute = nn::Recompute::kFull; })));
  }
  if (!config.data.packing && config.data.format != "text") {
    lines.push_back("data.packing: true, when rows are mostly shorter than the longest, with a smaller train.micro_batch");
  }
  if (planned.inputs.shapes.weight_dtype == at::kFloat && *config.run.mode == "finetune") {
    lines.push_back("model.dtype: bf16 halves the frozen weights");
  }
  const bool may_quantize = *config.run.mode == "finetune" && config.model.offload == "none" && config.adapter.method != "none";
  if (may_quantize && few_bits_of(planned.inputs.shapes).is_null()) {
    lines.push_back(fmt::format("adapter.quantization: {{bits: 4, double: true}} ({})", peak_with(keep_in_four_bits)));
  }
  if (planned.plan.packed_bytes > 0)
    lines.push_back("run.disable_fast_paths: [packed_weights] trades speed for " + size_text(planned.plan.packed_bytes));
  lines.push_back("data.max_length: shorter rows");
  return lines;
}

void print_table(const Planned& planned) {
  const auto& plan = planned.plan;
  const auto& inputs = planned.inputs;
  const auto& config = planned.config;
  fmt::print("lora {} on {}: {} parameters, {} of them trained; {} x {} tokens per micro-batch ({})\n\n", *config.run.mode,
             planned.device == c10::kCPU ? "the CPU" : "a GPU", with_thousands(plan.parameters.parameters),
             with_thousands(plan.parameters.trainable), inputs.micro_batch, inputs.row_tokens, planned.row_source);
  const OrderedJson few_bits = few_bits_of(inputs.shapes);
  const std::string in_few_bits = few_bits.is_null() ? "" : fmt::format(", the layers' in {}", few_bits.get<std::string>());
  print_line("weights", plan.parameters.weights_bytes, dtype_name(inputs.shapes.weight_dtype) + in_few_bits);
  print_line("packed", plan.packed_bytes, "frozen weights in the processor's layout, beyond the plain ones");
  print_line("adapters", plan.parameters.adapters_bytes, "");
  print_line("gradients", plan.parameters.gradients_bytes, "");
  print_line("optimizer", plan.parameters.optimizer_bytes, config.train.optimizer.type);
  print_line("activations", plan.activations_bytes, "train.recompute: " + config.train.recompute);
  print_line("logits", plan.logits_bytes, "of one chunk of the targets");
  print_line("program", plan.program_bytes, "LibTorch and the data");
  print_line("kept", plan.kept_bytes, "freed memory that the allocator cannot use again");
  print_line("peak", plan.peak_bytes, "not every part is largest at the same time");
  fmt::print("\n{} of {}: {}\n", size_text(plan.peak_bytes), size_text(planned.memory_bytes),
             planned.fits() ? "fits" : "does not fit");
  fmt::print("largest micro-batch: {} rows of {} tokens ({} tokens)\n", planned.largest_micro_batch, inputs.row_tokens,
             planned.largest_micro_batch * inputs.row_tokens);
  if (planned.fits()) return;
  fmt::print("\nto make it fit:\n");
  for (const auto& line : advice(planned)) fmt::print("- {}\n", line);
}

int PlanCommand::run() const {
  const Planned planned = make_plan(*this);
  if (json) {
    fmt::print("{}\n", to_json(planned).dump());
  } else {
    print_table(planned);
  }
  return kDone;
}

}  // namespace

void add_plan_command(CLI::App& program, Action& action) {
  auto* command = program.add_subcommand("plan", "Predicts the memory of a run, without loading weights");
  command->footer("Example: lora plan -c run.yaml --memory 24GiB");
  auto state = std::make_shared<PlanCommand>();
  state->run_file.add_to(*command, /*with_device=*/true);
  command->add_option("--memory", state->memory, "Memory to fit, for example 24GiB (default: this machine's, or the GPU's)");
  command->add_flag("--json", state->json, "Print one JSON object");
  add_log_options(*command);
  command->callback([state, &action] { action = [state] { return state->run(); }; });
}

}  // namespace lora::cli
