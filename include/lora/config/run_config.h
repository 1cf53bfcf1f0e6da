#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "lora/core/path.h"
#include "lora/formats/prompt_template.h"

namespace lora::config {

/// Names in PEFT's two forms: a list, or one string (a regular expression, or all-linear).
using Names = std::variant<std::vector<std::string>, std::string>;
/// Regular expression on module names -> value, in the order in which they are tried.
using Patterns = std::vector<std::pair<std::string, int64_t>>;
/// Ids of tokens of the input embedding, or by module.
using TokenIndices = std::variant<std::vector<int64_t>, std::vector<std::pair<std::string, std::vector<int64_t>>>>;
/// config.json's own field names -> YAML scalar text, sorted by name.
using ModelFields = std::vector<std::pair<std::string, std::string>>;

/// `run`: mode, place, seed, device.
struct RunSection {
  std::optional<std::string> mode;  ///< the sub-command; filled in when the file leaves it out
  Path output_dir;
  int64_t seed = 0;
  std::string resume = "auto";                  ///< none | auto | path of a checkpoint
  std::string device = "auto";                  ///< auto | cpu | cuda | cuda:N
  int64_t threads = 0;                          ///< 0: what the machine has
  std::vector<std::string> disable_fast_paths;  ///< all | names of nn::FastPaths
  bool operator==(const RunSection&) const = default;
};

/// Either `path` of a model directory, or `arch` (with `preset` or fields of config.json) for fresh
/// weights.
struct ModelSection {
  std::optional<Path> path;
  std::optional<std::string> arch, preset;
  /// fp32 | bf16 | fp16; default: config.json's (fresh weights: fp32)
  std::optional<std::string> dtype;
  std::string offload = "none";  ///< none | cpu | disk: where the frozen layers' weights stay
  ModelFields fields;            ///< for fresh weights; some also over a loaded model's own
  bool operator==(const ModelSection&) const = default;
};

/// `tokenizer`.
struct TokenizerSection {
  std::optional<Path> path;  ///< default: tokenizer.model in model.path
  bool operator==(const TokenizerSection&) const = default;
};

/// The frozen base in few bits; nothing without `bits`. docs/run-file.md has the defaults.
struct QuantizationSection {
  std::optional<int64_t> bits;      ///< 4 | 8
  std::optional<std::string> type;  ///< of 4 bits: nf4 | fp4
  std::optional<bool> double_quantized;
  std::optional<int64_t> block_size;
  bool operator==(const QuantizationSection&) const = default;
};

/// How init_lora_weights: eva finds its factors; docs/run-file.md has the defaults.
struct EvaSection {
  std::optional<double> rho, tau;
  std::optional<bool> use_label_mask, whiten, adjust_scaling_factors;
  std::optional<int64_t> label_mask_value;
  bool operator==(const EvaSection&) const = default;
};

/// The same of init_lora_weights: loftq.
struct LoftqSection {
  std::optional<int64_t> loftq_bits, loftq_iter;
  bool operator==(const LoftqSection&) const = default;
};

/// `adapter`, and each of `adapter.also`. What is not given has the method's default, or the value of the saved adapter of
/// init_from.
struct AdapterSection {
  /// lora | adalora | ia3 | trainable_tokens | prefix | prompt | ptuning | ptuning_v2 | bottleneck | none (the default of lora
  /// train)
  std::string method = "lora";
  // Of the other keys, each belongs to some methods (see adapter_keys.h); nothing: the method's default.
  std::optional<int64_t> r;
  std::optional<double> lora_alpha, lora_dropout;
  std::optional<bool> use_rslora, use_dora;
  /// true | false | gaussian | orthogonal | pissa | pissa_niter_N | olora | eva | loftq
  std::optional<std::string> init_lora_weights;
  EvaSection eva_config;
  LoftqSection loftq_config;
  std::optional<std::string> bias;  ///< none | all | lora_only
  std::optional<Names> target_modules, exclude_modules;
  std::optional<std::vector<std::string>> modules_to_save, layers_pattern;
  std::optional<TokenIndices> trainable_token_indices;
  std::optional<std::vector<std::string>> fused_rows;  ///< q, k, v: of a layer that computes them all, the rows that train
  std::optional<std::vector<int64_t>> layers_to_transform;
  std::optional<Patterns> rank_pattern, alpha_pattern;
  std::optional<int64_t> init_r, target_r, tinit, tfinal, deltaT, total_step;
  std::optional<double> beta1, beta2, orth_reg_weight;
  std::optional<Names> feedforward_modules;
  std::optional<int64_t> num_virtual_tokens, encoder_hidden_size, encoder_num_layers;
  std::optional<bool> prefix_projection;
  std::optional<double> prefix_dropout, encoder_dropout;
  std::optional<std::string> init_weights;  ///< zero | bert
  std::optional<std::string> prompt_tuning_init, prompt_tuning_init_text, encoder_reparameterization_type;
  std::optional<std::string> preset;  ///< houlsby | pfeiffer | parallel
  std::optional<bool> mh_adapter, output_adapter, original_ln_before, is_parallel, learn_scaling;
  std::optional<double> reduction_factor, scaling, dropout;
  std::optional<std::string> non_linearity;
  std::optional<std::vector<int64_t>> leave_out;
  std::optional<Path> init_from;
  std::optional<Path> tokens_from;  ///< an adapter whose rows those of trainable_token_indices start as
  QuantizationSection quantization;
  bool operator==(const AdapterSection&) const = default;
};

/// An adapter beside that of the section `adapter`, under a name of its own; its quantization is empty.
struct NamedAdapter {
  std::string name;
  AdapterSection adapter = {};
  bool operator==(const NamedAdapter&) const = default;
};

/// `freeze`: regular expressions on parameter names.
struct FreezeSection {
  std::vector<std::string> train, freeze;  ///< regular expressions on parameter names
  bool operator==(const FreezeSection&) const = default;
};

/// `data.train` and `data.eval`.
struct DataFile {
  std::optional<Path> path;
  bool shuffle = false;  ///< a new order in every epoch
  bool operator==(const DataFile&) const = default;
};

/// `data.loader`.
struct LoaderSection {
  std::optional<int64_t> workers = 1;  ///< nothing: `auto`, one and more while the steps wait
  int64_t prefetch = 2;
  bool drop_last = true;
  bool operator==(const LoaderSection&) const = default;
};

/// `data`.
struct DataSection {
  /// adgen | alpaca | chat | sharegpt | completion | text | tokens | records | one that the program registered
  std::string format;
  /// Of chat, sharegpt and alpaca; nothing: that of the tokenizer's model.
  std::optional<formats::PromptTemplate> prompt_template;
  DataFile train = {std::nullopt, true};  ///< path required
  DataFile eval;                          ///< always in file order
  int64_t max_source_length = 64, max_target_length = 64;
  std::optional<int64_t> max_length;  ///< text, tokens, chat, alpaca, completion
  bool packing = false;               ///< rows share sequences of max_length tokens
  std::string on_long = "truncate";   ///< truncate | error
  std::string on_bad_row = "error";   ///< error | skip
  std::string on_overlap = "warn";    ///< warn | drop | error
  bool require_end_token = false;
  std::optional<std::string> prompt_column,
      response_column;                                   ///< adgen, completion: other field names
  std::optional<Path> cache_dir;                         ///< of tokens; default: `cache` in run.output_dir
  bool train_on_sop = false, ignore_pad_in_loss = true;  ///< adgen with ChatGLM's tokenizer
  LoaderSection loader;
  bool operator==(const DataSection&) const = default;
};

/// `train.amp.scaler`.
struct ScalerSection {
  double init = 65536, factor = 2, min = 1;
  int64_t window = 1000;
  bool operator==(const ScalerSection&) const = default;
};

/// `train.amp`.
struct AmpSection {
  std::string dtype = "fp32";               ///< fp32 | bf16 | fp16
  std::optional<double> static_loss_scale;  ///< `loss_scale: NUMBER`; nothing: dynamic
  ScalerSection scaler;
  bool operator==(const AmpSection&) const = default;
};

/// `train.optimizer`.
struct OptimizerSection {
  std::string type = "adamw";  ///< adamw | sgd
  double lr = 2e-4;
  std::vector<double> betas = {0.9, 0.999};
  double eps = 1e-8, weight_decay = 0, momentum = 0;
  std::vector<std::string> no_decay = {"bias$", "norm"};
  bool bias_correction = true;
  bool master_weights = true;  ///< fp32 copies of parameters in half precision
  std::optional<double> loraplus_lr_ratio;
  bool operator==(const OptimizerSection&) const = default;
};

/// `train.lr_schedule`.
struct ScheduleSection {
  std::string type = "constant";  ///< constant | linear | cosine | polynomial
  int64_t warmup_steps = 0;
  double end = 0, power = 1;
  bool count_skipped = true;  ///< steps that an overflow left out advance the rate
  bool operator==(const ScheduleSection&) const = default;
};

/// Ends a run whose held-out loss no longer falls; never without `patience`.
struct EarlyStopSection {
  std::optional<int64_t> patience;  ///< evaluations without improvement
  double min_delta = 0;             ///< less than this below is none
  bool operator==(const EarlyStopSection&) const = default;
};

/// `train`.
struct TrainSection {
  int64_t epochs = 1, max_steps = -1, micro_batch = 8, grad_accum = 1;
  double clip_norm = 1.0;
  AmpSection amp;
  OptimizerSection optimizer;
  ScheduleSection lr_schedule;
  std::string recompute = "none";               ///< none | selective | full
  bool offload_activations = false;             ///< what recompute keeps stays in host memory
  std::string loss_reduction = "valid_tokens";  ///< valid_tokens | all_positions
  std::string on_nonfinite = "skip";            ///< skip | stop
  int64_t max_nonfinite = 10;                   ///< stop after so many skips in a row
  int64_t log_interval = 10, eval_interval = 0;
  EarlyStopSection early_stop;
  std::vector<std::string> callbacks;  ///< names that the program registered
  bool operator==(const TrainSection&) const = default;
};

/// `checkpoint`.
struct CheckpointSection {
  int64_t every_steps = 0, keep = 2;
  bool save_optimizer = true;
  bool keep_best = false;         ///< the result with the lowest held-out loss, in `best`
  bool load_best_at_end = false;  ///< it is the run's result
  bool operator==(const CheckpointSection&) const = default;
};

/// `generate`: of report samples, lora eval and lora predict.
struct GenerateSection {
  double temperature = 0.95, top_p = 0.7;
  int64_t top_k = 0, max_new_tokens = 256, prompt_lookup_num_tokens = 3;
  double repetition_penalty = 1, length_penalty = 1;
  int64_t num_beams = 1, batch_size = 32;
  bool operator==(const GenerateSection&) const = default;
};

/// How lora eval scores generated text.
struct EvalSection {
  std::vector<std::string> metrics = {"rouge", "bleu4"};  ///< empty: loss alone
  std::string segmenter = "char";                         ///< char | whitespace | dict
  std::optional<Path> dictionary;                         ///< of dict
  int64_t max_new_tokens = 256;
  bool operator==(const EvalSection&) const = default;
};

/// `log`.
struct LogSection {
  Path metrics = "metrics.jsonl";
  bool report = true;
  int64_t samples = 3;  ///< generations shown in the report before and after training
  bool operator==(const LogSection&) const = default;
};

/// The run file, complete and checked. docs/run-file.md describes each key.
struct RunConfig {
  RunSection run;
  ModelSection model;
  TokenizerSection tokenizer;
  AdapterSection adapter;                   ///< its name is "default"
  std::vector<NamedAdapter> more_adapters;  ///< `adapter.also`
  FreezeSection freeze;
  DataSection data;
  TrainSection train;
  CheckpointSection checkpoint;
  EvalSection eval;
  GenerateSection generate;
  LogSection log;
  bool operator==(const RunConfig&) const = default;
};

/// Reads a run file. `overrides` are `a.b.c=value` texts (the value is YAML), applied on top; their
/// relative paths count from `override_base` while those of the file count from the file's folder.
/// Every path in the result is absolute. `command` is the sub-command (train, finetune, eval or predict); empty: the
/// one that run.mode names, without it train for adapter.method none and finetune otherwise. Throws
/// ConfigError (unknown key with the nearest one, wrong type, out of range, duplicate, missing
/// file).
RunConfig load_run_config(const Path& file, const std::vector<std::string>& overrides, const Path& override_base,
                          std::string_view command);

/// The same from text; `name` stands for the file in messages, `base` is what relative paths count
/// from.
RunConfig parse_run_config(std::string_view text, std::string_view name, const Path& base,
                           const std::vector<std::string>& overrides, const Path& override_base, std::string_view command);

/// The whole configuration as a run file, every default written out, paths absolute. Reading it
/// gives an equal configuration.
std::string dump_run_config(const RunConfig& config);

/// One key whose value differs between two configurations, as YAML text.
struct ConfigDifference {
  std::string key, before, after;
  bool operator==(const ConfigDifference&) const = default;
};

/// Keys that differ and would change the result of a resumed run (not: how far it runs, where it
/// logs, what it saves, which device or how many threads compute it, run.resume).
std::vector<ConfigDifference> result_changing_differences(const RunConfig& before, const RunConfig& after);

}  // namespace lora::config
