#include "cli/run_setup.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "cli/saved_adapter.h"
#include "core/check.h"
#include "lora/adapters/adapter_io.h"
#include "lora/adapters/eva.h"
#include "lora/adapters/fused_rows.h"
#include "lora/adapters/inject.h"
#include "lora/adapters/loftq.h"
#include "lora/core/dtype.h"
#include "lora/core/log.h"
#include "lora/core/text.h"
#include "lora/data/dataset.h"
#include "lora/data/format_registry.h"
#include "lora/data/glm_tokenizer.h"
#include "lora/data/supervision.h"
#include "lora/io/adapter_files.h"
#include "lora/io/dtype.h"
#include "lora/io/model_files.h"
#include "lora/io/quantized.h"
#include "lora/nn/few_bits.h"

namespace lora::cli {
namespace {

using config::RunConfig;

std::optional<at::ScalarType> model_dtype(const RunConfig& config) {
  if (!config.model.dtype) return std::nullopt;
  return io::to_torch(parse_float_dtype(*config.model.dtype, "model.dtype"), "model.dtype");
}

/// Puts a given key of the run file into `target`; keys that are not given leave it.
template <class Target, class Value>
void apply(Target& target, const std::optional<Value>& value) {
  if (value) target = *value;
}

/// Of every method on weights.
template <class Options>
void apply_targets(Options& options, const config::AdapterSection& section) {
  apply(options.targets, section.target_modules);
  apply(options.exclude, section.exclude_modules);
  apply(options.modules_to_save, section.modules_to_save);
}

/// Of LoRA and AdaLoRA.
template <class Options>
void apply_low_rank(Options& options, const config::AdapterSection& section) {
  apply_targets(options, section);
  if (section.trainable_token_indices) options.token_indices = section.trainable_token_indices;
  apply(options.alpha, section.lora_alpha);
  apply(options.dropout, section.lora_dropout);
  apply(options.bias, section.bias);
  apply(options.layers_pattern, section.layers_pattern);
  if (section.layers_to_transform) options.layers_to_transform = section.layers_to_transform;
}

/// The run file has whole numbers.
std::vector<std::pair<std::string, double>> alphas_of(const config::Patterns& patterns) {
  return {patterns.begin(), patterns.end()};
}

LoraOptions lora_options(const config::AdapterSection& section) {
  LoraOptions options;
  apply_low_rank(options, section);
  apply(options.rank, section.r);
  apply(options.rank_stabilized, section.use_rslora);
  apply(options.dora, section.use_dora);
  apply(options.init, section.init_lora_weights);
  apply(options.rank_pattern, section.rank_pattern);
  if (section.alpha_pattern) options.alpha_pattern = alphas_of(*section.alpha_pattern);
  return options;
}

AdaLoraOptions adalora_options(const config::AdapterSection& section, int64_t total_steps) {
  AdaLoraOptions options;
  apply_low_rank(options, section);
  apply(options.init_rank, section.init_r);
  apply(options.target_rank, section.target_r);
  apply(options.initial_steps, section.tinit);
  apply(options.final_steps, section.tfinal);
  apply(options.interval, section.deltaT);
  apply(options.beta1, section.beta1);
  apply(options.beta2, section.beta2);
  apply(options.orth_reg_weight, section.orth_reg_weight);
  options.total_steps = section.total_step.value_or(total_steps);
  return options;
}

/// Without feedforward_modules those of the default that are targets.
Ia3Options ia3_options(const config::AdapterSection& section) {
  Ia3Options options;
  apply_targets(options, section);
  apply(options.feedforward, section.feedforward_modules);
  return options;
}

PrefixOptions prefix_options(const config::AdapterSection& section, int64_t hidden) {
  PrefixOptions options;
  if (section.method == "ptuning_v2") {
    options.dropout = kPTuningV2Dropout;
    options.encoder_hidden_size = hidden;
    options.num_virtual_tokens = 128;
  }
  apply(options.num_virtual_tokens, section.num_virtual_tokens);
  apply(options.projection, section.prefix_projection);
  apply(options.dropout, section.prefix_dropout);
  apply(options.encoder_hidden_size, section.encoder_hidden_size);
  options.init_zero = section.init_weights == "zero";
  return options;
}

PromptOptions prompt_options(const RunConfig& config, const config::AdapterSection& section, const data::Tokenizer* tokenizer) {
  PromptOptions options;
  apply(options.num_virtual_tokens, section.num_virtual_tokens);
  apply(options.init, section.prompt_tuning_init);
  apply(options.init_text, section.prompt_tuning_init_text);
  if (options.init != "TEXT") return options;
  require<ConfigError>(
      tokenizer != nullptr && !options.init_text.empty(),
      "[adapter.prompt_tuning_init] TEXT needs adapter.prompt_tuning_init_text and a tokenizer; found {}; give it",
      tokenizer == nullptr ? "no tokenizer" : "no text");
  options.init_ids = data::encode_prompt(*tokenizer, options.init_text);
  options.tokenizer = config.model.path.value_or(config.tokenizer.path.value_or("")).string();
  return options;
}

PTuningOptions ptuning_options(const config::AdapterSection& section) {
  PTuningOptions options;
  apply(options.num_virtual_tokens, section.num_virtual_tokens);
  apply(options.encoder, section.encoder_reparameterization_type);
  apply(options.encoder_hidden_size, section.encoder_hidden_size);
  apply(options.encoder_num_layers, section.encoder_num_layers);
  apply(options.encoder_dropout, section.encoder_dropout);
  return options;
}

BottleneckOptions bottleneck_options(const config::AdapterSection& section) {
  BottleneckOptions options = bottleneck_preset(section.preset.value_or("pfeiffer"));
  apply(options.mh_adapter, section.mh_adapter);
  apply(options.output_adapter, section.output_adapter);
  apply(options.original_ln_before, section.original_ln_before);
  apply(options.is_parallel, section.is_parallel);
  apply(options.reduction_factor, section.reduction_factor);
  apply(options.non_linearity, section.non_linearity);
  apply(options.scaling, section.scaling);
  apply(options.learn_scaling, section.learn_scaling);
  apply(options.dropout, section.dropout);
  apply(options.init, section.init_weights);
  apply(options.leave_out, section.leave_out);
  return options;
}

TrainableTokensOptions token_options(const config::AdapterSection& section) {
  TrainableTokensOptions options;
  options.token_indices = std::get<std::vector<int64_t>>(section.trainable_token_indices.value());
  if (section.target_modules) options.targets = section.target_modules;
  return options;
}

/// Width of the states; 0: a model that takes no virtual tokens, for which alone it is asked.
int64_t hidden_size(const nn::CausalLMImpl& model) {
  const auto shape = model.prompt_shape();
  return shape ? shape->hidden : 0;
}

MethodOptions method_options(const RunConfig& config, const config::AdapterSection& given, const nn::CausalLMImpl& model,
                             const data::Tokenizer* tokenizer, int64_t total_steps) {
  const std::string& method = given.method;
  config::AdapterSection section = given;
  const bool is_low_rank = method == "lora" || method == "adalora";
  if (is_low_rank && !section.target_modules && !model.default_targets().empty())
    section.target_modules = model.default_targets();
  if (method == "adalora") return adalora_options(section, total_steps);
  if (method == "ia3") return ia3_options(section);
  if (method == "trainable_tokens") return token_options(section);
  if (method == "prefix" || method == "ptuning_v2") return prefix_options(section, hidden_size(model));
  if (method == "prompt") return prompt_options(config, section, tokenizer);
  if (method == "ptuning") return ptuning_options(section);
  if (method == "bottleneck") return bottleneck_options(section);
  return lora_options(section);
}

/// Whether a run finds the adapter's form or values when it begins: eva or loftq.
bool starts_as(const config::AdapterSection& section, std::string_view init) {
  return section.init_lora_weights == init && !section.init_from;
}

/// Rows whose labels say what EVA counts, so that padding, which has none, never does.
class CountedRows : public data::RowSource {
 public:
  CountedRows(const data::RowSource& rows, const EvaOptions& options) : rows_(rows), options_(options) {}

  int64_t size() const override { return rows_.size(); }
  int64_t length(int64_t row) const override { return rows_.length(row); }
  void read(int64_t row, data::Example& example) const override {
    rows_.read(row, example);
    for (size_t i = 0; i < example.labels.size(); ++i) {
      const bool left_out = options_.use_label_mask && example.labels[i] == options_.label_mask_value;
      example.labels[i] = left_out ? static_cast<int32_t>(kIgnoreLabel) : example.input_ids[i];
    }
  }

 private:
  const data::RowSource& rows_;
  const EvaOptions& options_;
};

void start_eva(const config::EvaSection& section, nn::CausalLMImpl& model, const AdapterSet& adapters, const data::Dataset& rows,
               data::LoaderOptions loader_options) {
  EvaOptions options;
  apply(options.rho, section.rho);
  apply(options.tau, section.tau);
  apply(options.use_label_mask, section.use_label_mask);
  apply(options.label_mask_value, section.label_mask_value);
  apply(options.whiten, section.whiten);
  apply(options.adjust_scaling_factors, section.adjust_scaling_factors);
  loader_options.workers = 0;
  loader_options.grad_accum = 1;
  loader_options.num_steps = options.most_batches;
  const CountedRows counted(rows, options);
  data::Loader loader(counted, loader_options);
  log::info("EVA: finding the directions of the layers' inputs in the training data");
  EvaOptions by_label = options;
  by_label.use_label_mask = true;
  by_label.label_mask_value = kIgnoreLabel;
  const auto report = initialize_eva(
      model, adapters, [&](int64_t) { return loader.next().value().micro_batches.at(0); }, by_label);
  const auto [least, most] = std::ranges::minmax(report.layers, {}, &EvaLayer::rank);
  const auto empty = std::ranges::count(report.layers, 0, &EvaLayer::rank);
  log::info(fmt::format("EVA: ranks from {} to {} after {} batches; {} of {} modules have no adapter", least.rank, most.rank,
                        report.batches, empty, report.layers.size()));
}

void start_loftq(const RunConfig& config, const AdapterSet& adapters) {
  const io::ModelFiles files(*config.model.path);
  const auto plain_weight = [&](const std::string& path) {
    const auto stored = io::stored_weight(files, path + ".weight");
    require<ConfigError>(!stored.scheme,
                         "[adapter.init_lora_weights] loftq needs the weights before they are quantised; found a model in "
                         "few bits in {}; give model.path the original, or use another init",
                         config.model.path->string());
    const at::Tensor weight = at::empty(stored.shape, at::kFloat);
    files.read_into(path + ".weight", weight);
    return weight;
  };
  const auto report = initialize_loftq(adapters, plain_weight, config.adapter.loftq_config.loftq_iter.value_or(1));
  log::info(fmt::format(
      "LoftQ: what quantising took from {} weights falls from {:.4g} to {:.4g} (Frobenius); {} weights quantised anew",
      report.layers, report.error_before, report.error_after, report.requantized));
}

/// Positions that virtual tokens will take from every row.
int64_t num_virtual_positions(const config::AdapterSection& section, const nn::CausalLMImpl& model) {
  const std::string& method = section.method;
  const bool is_prefix = method == "prefix" || method == "ptuning_v2";
  if (!is_prefix && method != "prompt" && method != "ptuning") return 0;
  if (is_prefix && !model.prefix_takes_positions()) return 0;
  if (section.num_virtual_tokens) return *section.num_virtual_tokens;
  if (section.init_from) {
    const MethodOptions saved = options_from(io::read_adapter_config(*section.init_from));
    if (const auto* prefix = std::get_if<PrefixOptions>(&saved)) return prefix->num_virtual_tokens;
    if (const auto* prompt = std::get_if<PromptOptions>(&saved)) return prompt->num_virtual_tokens;
  }
  return is_prefix ? prefix_options(section, hidden_size(model)).num_virtual_tokens : PromptOptions().num_virtual_tokens;
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

std::optional<Path> own_base(const RunConfig& config) {
  const bool iterates = starts_as(config.adapter, "loftq") && config.adapter.loftq_config.loftq_iter.value_or(1) > 1;
  return iterates ? std::optional(config.run.output_dir / "base") : std::nullopt;
}

RunConfig with_base_of(const Path& checkpoint, const RunConfig& config) {
  RunConfig changed = config;
  if (own_base(config)) changed.model.path = base_model_name(options_from(io::read_adapter_config(checkpoint / "adapter")));
  return changed;
}

void start_adapters(const RunConfig& config, nn::CausalLMImpl& model, const AdapterSets& adapters, const data::Dataset& rows,
                    const data::LoaderOptions& loader) {
  const auto& sets = adapters.all();
  for (size_t i = 0; i < sets.size(); ++i) {
    const auto& section = i == 0 ? config.adapter : config.more_adapters.at(i - 1).adapter;
    if (starts_as(section, "eva")) start_eva(section.eva_config, model, sets[i], rows, loader);
  }
  if (starts_as(config.adapter, "loftq")) start_loftq(config, sets.front());
}

AdapterSets make_adapters(const RunConfig& config, nn::CausalLMImpl& model, const data::Tokenizer* tokenizer, int64_t total_steps,
                          const std::optional<Path>& checkpoint) {
  if (config.adapter.method == "none") return {};
  const auto make = [&](const config::AdapterSection& section, const std::string& name) {
    if (checkpoint && (starts_as(section, "eva") || starts_as(section, "loftq"))) {
      return load_adapter(model, name == "default" ? *checkpoint / "adapter" : *checkpoint / "adapter" / name, name);
    }
    if (section.init_from) return load_saved_adapter(section, model, name);
    MethodOptions options = method_options(config, section, model, tokenizer, total_steps);
    set_base_model_name(options, own_base(config).value_or(config.model.path.value_or("")).string());
    const AdapterSet adapters = inject_method(model, options, name);
    if (section.tokens_from) start_token_rows(adapters, io::read_adapter_files(*section.tokens_from));
    return adapters;
  };
  const auto made = [&](const config::AdapterSection& section, const std::string& name) {
    const AdapterSet adapters = make(section, name);
    if (section.fused_rows) train_fused_rows(model, adapters, *section.fused_rows);
    return adapters;
  };
  std::vector<AdapterSet> sets = {made(config.adapter, "default")};
  for (const auto& one : config.more_adapters) sets.push_back(made(one.adapter, one.name));
  if (sets.size() > 1) activate_together(model, sets);
  return sets;
}

FreezeReport freeze(const RunConfig& config, nn::CausalLMImpl& model, const AdapterSets& adapters) {
  const FreezeRules rules{config.freeze.train, config.freeze.freeze};
  return adapters ? freeze_base(model, adapters.all(), rules) : train_all(model, rules);
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

void check_supervision(const RunConfig& config, const data::Dataset& dataset, const data::Tokenizer* tokenizer,
                       const nn::CausalLMImpl& model) {
  const auto ends = model.end_ids();
  const int64_t end_id = tokenizer != nullptr ? tokenizer->eos_id() : ends.empty() ? -1 : ends.front();
  const auto report = data::check_supervision(dataset, tokenizer, end_id);
  log::info(fmt::format("{} of {} tokens are targets; one row: {}", with_thousands(report.num_targets),
                        with_thousands(report.num_tokens), report.shown));
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
