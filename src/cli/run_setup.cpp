#include "cli/run_setup.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "cli/method_options.h"
#include "core/check.h"
#include "lora/core/dtype.h"
#include "lora/core/log.h"
#include "lora/core/text.h"
#include "lora/data/dataset.h"
#include "lora/data/format_registry.h"
#include "lora/data/glm_tokenizer.h"
#include "lora/data/supervision.h"
#include "lora/io/dtype.h"
#include "lora/nn/few_bits.h"

namespace lora::cli {
namespace {

using config::RunConfig;

std::optional<at::ScalarType> model_dtype(const RunConfig& config) {
  if (!config.model.dtype) return std::nullopt;
  return io::to_torch(parse_float_dtype(*config.model.dtype, "model.dtype"), "model.dtype");
}

int64_t row_limit(const RunConfig& config, int64_t context) {
  if (config.data.format == "adgen") {
    const int64_t needed = config.data.max_source_length + config.data.max_target_length;
    require<ConfigError>(needed <= context,
                         "[data] max_source_length + max_target_length must fit the model's {} positions; found {}", context,
                         needed);
  }
  const int64_t limit = config.data.max_length.value_or(context);
  require<ConfigError>(limit <= context, "[data.max_length] rows must fit the model's {} positions; found {}", context, limit);
  return limit;
}

nn::Offload offload(const RunConfig& config) {
  if (config.model.offload == "disk") return nn::Offload::kDisk;
  return config.model.offload == "cpu" ? nn::Offload::kCpu : nn::Offload::kNone;
}

std::optional<QuantizationScheme> quantization(const config::QuantizationSection& section) {
  if (!section.bits) return std::nullopt;
  if (*section.bits == 8) return QuantizationScheme{.type = QuantizedType::kInt8};
  QuantizationScheme scheme;
  if (section.type) scheme.type = quantized_type_from(*section.type).value();
  apply(scheme.double_quantized, section.double_quantized);
  apply(scheme.block_size, section.block_size);
  return scheme;
}

void require_loaded_fields(const RunConfig& config, const models::Architecture& architecture) {
  for (const auto& [key, text] : config.model.fields) {
    const bool is_known = std::ranges::find(architecture.loaded_fields, key) != architecture.loaded_fields.end();
    require<ConfigError>(is_known, "[model.{}] the key must be one that a loaded {} can change; found it set to {}; remove it",
                         key, architecture.name, text);
  }
}

std::shared_ptr<nn::CausalLMImpl> load_or_make(const RunConfig& config, const at::Device& device) {
  const auto in_few_bits = quantization(config.adapter.quantization);
  const nn::Offload where = device.is_meta() ? nn::Offload::kNone : offload(config);
  if (where == nn::Offload::kCpu && device.is_cpu()) {
    log::info("model.offload: cpu changes nothing here: the device is the CPU, in whose memory the base is anyway");
  }
  const auto& architecture = architecture_of(config);
  if (config.model.path) {
    require_loaded_fields(config, architecture);
    return architecture.load(*config.model.path, {.device = device,
                                                  .dtype = model_dtype(config),
                                                  .offload = where,
                                                  .quantization = in_few_bits,
                                                  .fields = config.model.fields});
  }
  require<ConfigError>(architecture.make != nullptr,
                       "[model.arch] fresh weights need an architecture that makes them; found {:?}, which is "
                       "only loaded; give model.path",
                       architecture.name);
  require<ConfigError>(where == nn::Offload::kNone || architecture.offload_to_host != nullptr,
                       "[model.offload] the architecture must be one whose weights stream; found {:?}; leave it out",
                       architecture.name);
  const at::Device first = where == nn::Offload::kCpu ? at::Device(at::kCPU) : device;
  auto model = architecture.make(
      {.preset = config.model.preset,
       .fields = config.model.fields,
       .parameters = {.dtype = model_dtype(config).value_or(at::kFloat), .device = first, .quantization = in_few_bits}});
  if (where == nn::Offload::kCpu) architecture.offload_to_host(*model, device);
  return model;
}

void say_what_is_in_few_bits(const nn::CausalLMImpl& model) {
  const auto few_bits = nn::few_bits_of(model);
  if (!few_bits.scheme) return;
  constexpr double kMiB = 1 << 20;
  log::info(fmt::format("{} frozen weights in {}: {:.1f} MiB instead of {:.1f} MiB", few_bits.layers,
                        name_of(few_bits.scheme->type), static_cast<double>(few_bits.bytes) / kMiB,
                        static_cast<double>(few_bits.plain_bytes) / kMiB));
}

/// Null where what recomputation keeps stays on the device.
std::shared_ptr<nn::ActivationStore> activation_store(const RunConfig& config, const at::Device& device) {
  if (!config.train.offload_activations || device.is_meta()) return nullptr;
  if (!device.is_cpu()) return std::make_shared<nn::ActivationStore>(device);
  log::info("train.offload_activations changes nothing here: the device is the CPU, in whose memory they are anyway");
  return nullptr;
}

/// The program looks at parameters only where the library restores them first, so packed weights need no plain twin.
nn::FastPaths fast_paths(const RunConfig& config) {
  nn::FastPaths fast;
  fast.release_plain = true;
  for (const auto& name : config.run.disable_fast_paths) {
    if (name == "all") return nn::FastPaths::none();
    fast.at(name) = false;
  }
  return fast;
}

}  // namespace

const models::Architecture& architecture_of(const RunConfig& config) {
  return config.model.path ? models::architecture_of(*config.model.path)
                           : models::architecture(config.model.arch.value_or("none"));
}

std::shared_ptr<nn::CausalLMImpl> make_model(const RunConfig& config, const at::Device& device) {
  auto model = load_or_make(config, device);
  if (!device.is_meta()) say_what_is_in_few_bits(*model);
  model->fast_paths = fast_paths(config);
  if (config.train.recompute == "selective") model->recompute = nn::Recompute::kSelective;
  if (config.train.recompute == "full") model->recompute = nn::Recompute::kFull;
  model->activations = activation_store(config, device);
  return model;
}

std::shared_ptr<const data::Tokenizer> make_tokenizer(const RunConfig& config) {
  if (config.model.path) architecture_of(config);  // a model that is not there is not one without a tokenizer
  if (config.tokenizer.path) return data::load_tokenizer(*config.tokenizer.path);
  auto tokenizer = config.model.path ? data::find_tokenizer(*config.model.path) : nullptr;
  require<IoError>(
      tokenizer != nullptr || !data::needs_tokenizer(config.data.format),
      "[tokenizer] data.format {} needs a tokenizer; found neither tokenizer.model nor {} in the model directory; set "
      "tokenizer.path",
      config.data.format, data::kGlmTokenizerFile);
  return tokenizer;
}

int64_t row_room(const RunConfig& config, const nn::CausalLMImpl& model) {
  int64_t taken = num_virtual_positions(config.adapter, model);
  for (const auto& one : config.more_adapters) taken += num_virtual_positions(one.adapter, model);
  const int64_t room = model.max_positions() - taken;
  require<ConfigError>(
      room >= 2,
      "[adapter.num_virtual_tokens] virtual tokens must leave room for rows in the model's {} positions; found {}; "
      "use fewer",
      model.max_positions(), taken);
  return room;
}

data::DatasetOptions dataset_options(const RunConfig& config, const nn::CausalLMImpl& model) {
  data::DatasetOptions options;
  options.format = config.data.format;
  options.prompt_template = config.data.prompt_template;
  options.max_source_length = config.data.max_source_length;
  options.max_target_length = config.data.max_target_length;
  options.max_length = row_limit(config, row_room(config, model));
  options.train_on_sop = config.data.train_on_sop;
  options.ignore_pad_in_loss = config.data.ignore_pad_in_loss;
  options.truncate_long = config.data.on_long == "truncate";
  options.skip_bad_rows = config.data.on_bad_row == "skip";
  options.vocab_size = model.vocab_size();
  options.prompt_column = config.data.prompt_column;
  options.response_column = config.data.response_column;
  return options;
}

std::vector<int64_t> overlap_to_drop(const RunConfig& config, const std::vector<int64_t>& equal, int64_t total) {
  if (equal.empty()) return {};
  const std::string found =
      fmt::format("[data.eval] evaluation rows must not occur in the training data; {} of {} do", equal.size(), total);
  const std::string& policy = config.data.on_overlap;
  require<DataError>(policy != "error", "{}; remove them, or let data.on_overlap be drop or warn", found);
  require<DataError>(policy != "drop" || std::cmp_less(equal.size(), total),
                     "{}; there is nothing left to evaluate on; give other data", found);
  log::warn(fmt::format("{}; {}", found, policy == "drop" ? "they are left out" : "data.on_overlap: drop leaves them out"));
  return policy == "drop" ? equal : std::vector<int64_t>{};
}

data::Dataset make_dataset(const RunConfig& config, const Path& file, const nn::CausalLMImpl& model,
                           const data::Tokenizer* tokenizer, const std::optional<Path>& cache_dir) {
  data::DatasetOptions options = dataset_options(config, model);
  options.cache_dir = cache_dir;
  data::Dataset dataset = data::load_dataset(file, options, tokenizer);
  log::info(fmt::format(
      "{}: {} rows, {} truncated, {} bad{}", file.filename().string(), dataset.num_rows, dataset.num_truncated,
      dataset.num_bad_rows,
      dataset.cache_file ? fmt::format("; {} from the cache {}", dataset.num_rows, dataset.cache_file->string()) : ""));
  for (const auto& reason : dataset.bad_row_reasons) log::warn("left out: " + reason);
  return dataset;
}

Path token_cache_dir(const RunConfig& config) { return config.data.cache_dir.value_or(config.run.output_dir / "cache"); }

data::LoaderOptions loader_options(const RunConfig& config, int64_t pad_id, int64_t max_positions) {
  data::LoaderOptions options;
  // With all_positions the padding counts, and must be what the user's data give.
  options.pad_to_multiple_of = config.train.loss_reduction == "all_positions" ? 1 : 8;
  options.max_length = max_positions;
  if (config.data.packing) options.pack_to = row_limit(config, max_positions);
  options.batch_size = config.train.micro_batch;
  options.grad_accum = config.train.grad_accum;
  options.shuffle = config.data.train.shuffle;
  options.drop_last = config.data.loader.drop_last;
  options.seed = static_cast<uint64_t>(config.run.seed);
  options.workers = config.data.loader.workers;
  options.prefetch = config.data.loader.prefetch;
  options.pad_id = pad_id;
  return options;
}

train::TrainerOptions trainer_options(const RunConfig& config, const at::Device& device, int64_t steps) {
  const auto& train = config.train;
  train::TrainerOptions options;
  options.steps = steps;
  options.learning_rate = train.optimizer.lr;
  options.clip_norm = train.clip_norm;
  options.amp_dtype = io::to_torch(parse_float_dtype(train.amp.dtype, "train.amp.dtype"), "train.amp.dtype");
  options.device = device;

  options.optimizer = {.type = train.optimizer.type,
                       .lr = train.optimizer.lr,
                       .beta1 = train.optimizer.betas.at(0),
                       .beta2 = train.optimizer.betas.at(1),
                       .eps = train.optimizer.eps,
                       .weight_decay = train.optimizer.weight_decay,
                       .momentum = train.optimizer.momentum,
                       .no_decay = train.optimizer.no_decay,
                       .bias_correction = train.optimizer.bias_correction,
                       .master_weights = train.optimizer.master_weights,
                       .loraplus_lr_ratio = train.optimizer.loraplus_lr_ratio};
  options.schedule.type = train.lr_schedule.type;
  options.schedule.warmup_steps = train.lr_schedule.warmup_steps;
  options.schedule.end = train.lr_schedule.end;
  options.schedule.power = train.lr_schedule.power;
  options.schedule.count_skipped = train.lr_schedule.count_skipped;
  options.scaler = {.enabled = options.amp_dtype == at::kHalf,
                    .dynamic = !train.amp.static_loss_scale.has_value(),
                    .init = train.amp.static_loss_scale.value_or(train.amp.scaler.init),
                    .factor = train.amp.scaler.factor,
                    .min = train.amp.scaler.min,
                    .window = train.amp.scaler.window};
  options.step.divide_by_all_positions = train.loss_reduction == "all_positions";
  options.step.stop_on_nonfinite = train.on_nonfinite == "stop";
  options.step.max_nonfinite = train.max_nonfinite;
  return options;
}

generate::GenerateOptions generate_options(const RunConfig& config, nn::CausalLMImpl& model) {
  const auto& section = config.generate;
  generate::GenerateOptions options;
  options.sampling = {section.temperature, section.top_k, section.top_p};
  options.beams.num_beams = section.num_beams;
  options.beams.length_penalty = section.length_penalty;
  options.repetition_penalty = section.repetition_penalty;
  options.prompt_lookup_num_tokens = section.prompt_lookup_num_tokens;
  options.max_new_tokens = section.max_new_tokens;
  options.stop_ids = model.end_ids();
  options.seed = static_cast<uint64_t>(config.run.seed);
  return options;
}

void check_supervision(const RunConfig& config, const data::Dataset& dataset, const data::Tokenizer* tokenizer,
                       const nn::CausalLMImpl& model) {
  const auto ends = model.end_ids();
  const int64_t end_id = tokenizer != nullptr ? tokenizer->eos_id() : ends.empty() ? -1 : ends.front();
  const auto report = data::check_supervision(dataset, tokenizer, end_id);
  log::info(fmt::format("{} of {} tokens are targets; one row: {}", with_thousands(report.num_targets),
                        with_thousands(report.num_tokens), report.shown));
  if (report.rows_without_targets > 0 && !report.teaches_nothing())
    log::info(fmt::format("{} of {} rows have no target", with_thousands(report.rows_without_targets),
                          with_thousands(report.num_rows)));
  require<DataError>(!report.teaches_nothing(),
                     "[data.train] some token must be a target; found none in {} rows: every label is masked", report.num_rows);
  if (!data::has_answers(config.data.format) || !report.never_teaches_the_end()) return;
  constexpr const char* kText =
      "[data.train] the end token must be a target, or the tuned model will never stop; found it "
      "in none of {} rows; raise the length limits";
  require<DataError>(!config.data.require_end_token, kText, report.num_rows);
  log::warn(fmt::format(kText, report.num_rows));
}

}  // namespace lora::cli
