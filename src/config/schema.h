// The run file's keys: the one place that names them. Reading, writing, comparing and suggesting
// are visitors with
//   section(name, body)       a map; `body` visits its keys
//   key(name, member, rule)   a value
//   named(name, list, body)   a map from names to maps of the same keys; `body` visits those of one
//   only(name, value)         a key of a part that this version does not have: `value` or null
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>

#include "config/model_fields.h"
#include "config/rule.h"
#include "config/value.h"
#include "lora/config/known_names.h"
#include "lora/config/run_config.h"

namespace lora::config {

template <class Visitor>
void describe_run(Visitor& v, RunSection& run) {
  const auto harmless = with_effect(Effect::kNone);
  v.key("mode", run.mode, one_of({"train", "finetune", "eval", "predict"}).with_effect(Effect::kNone));
  v.key("output_dir", run.output_dir, harmless);
  v.key("seed", run.seed, at_least(0));
  v.key("resume", run.resume, one_of({"none", "auto"}).with_text(TextKind::kPath).with_effect(Effect::kNone));
  v.key("device", run.device, Rule{.has_form = is_device, .form = "auto, cpu, cuda or cuda:N", .effect = Effect::kNone});
  v.key("threads", run.threads, between(0, 1024).with_effect(Effect::kNone));
  v.key("disable_fast_paths", run.disable_fast_paths,
        one_of({"all", "joined", "packed_weights", "fused_norm", "fused_rotary", "fused_swiglu", "fused_attention", "fused_loss",
                "recorded_step", "release_plain"}));
}

/// A field of config.json, kept as text: visited as what it is.
template <class T, class Visitor>
void describe_field(Visitor& v, std::string_view name, ModelFields& fields, const Rule& rule = {}) {
  std::optional<T> value = find_field<T>(fields, name);
  v.key(name, value, rule);
  set_field(fields, name, value ? std::optional(write_value(*value, rule)) : std::nullopt);
}

/// The fields of config.json (Llama's, then ChatGLM's own) that fresh weights may set; the architecture knows its own.
template <class Visitor>
void describe_fields(Visitor& v, ModelFields& fields) {
  constexpr double kMax = std::numeric_limits<int32_t>::max();
  for (const auto* name : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                           "num_key_value_heads", "head_dim", "max_position_embeddings", "num_layers", "inner_hidden_size",
                           "max_sequence_length", "residual_alpha_layers"}) {
    describe_field<int64_t>(v, name, fields, between(1, kMax));
  }
  for (const auto* name : {"bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "gmask_token_id"}) {
    describe_field<int64_t>(v, name, fields, between(0, kMax));
  }
  describe_field<double>(v, "rms_norm_eps", fields, greater_than(0));
  describe_field<double>(v, "layernorm_epsilon", fields, greater_than(0));
  describe_field<double>(v, "rope_theta", fields, greater_than(0));
  describe_field<double>(v, "initializer_range", fields, at_least(0));
  for (const auto* name : {"tie_word_embeddings", "attention_bias", "mlp_bias"}) {
    describe_field<bool>(v, name, fields);
  }
  describe_field<std::string>(v, "rope_inv_freq_dtype", fields, one_of({"fp32", "fp16"}));
}

template <class Visitor>
void describe_model(Visitor& v, ModelSection& model) {
  v.key("path", model.path);
  v.key("arch", model.arch, one_of({known_names().architectures.begin(), known_names().architectures.end()}));
  v.key("preset", model.preset);
  v.key("dtype", model.dtype, one_of({"fp32", "bf16", "fp16"}));
  describe_fields(v, model.fields);
  v.key("offload", model.offload, one_of({"none", "cpu", "disk"}).with_effect(Effect::kNone));
  v.only("fp32_modules", "[]");
}

template <class Visitor>
void describe_adalora(Visitor& v, AdapterSection& adapter) {
  v.key("init_r", adapter.init_r, at_least(1));
  v.key("target_r", adapter.target_r, at_least(1));
  v.key("tinit", adapter.tinit, at_least(0));
  v.key("tfinal", adapter.tfinal, at_least(0));
  v.key("deltaT", adapter.deltaT, at_least(1));
  v.key("beta1", adapter.beta1, Rule{.least = 0, .most = 1, .least_is_open = true, .most_is_open = true});
  v.key("beta2", adapter.beta2, Rule{.least = 0, .most = 1, .least_is_open = true, .most_is_open = true});
  v.key("orth_reg_weight", adapter.orth_reg_weight, at_least(0));
  v.key("total_step", adapter.total_step, at_least(1));
}

template <class Visitor>
void describe_virtual_tokens(Visitor& v, AdapterSection& adapter) {
  v.key("num_virtual_tokens", adapter.num_virtual_tokens, at_least(1).with_alias("pre_seq_len"));
  v.key("prefix_projection", adapter.prefix_projection);
  v.key("prefix_dropout", adapter.prefix_dropout, fraction());
  v.key("encoder_hidden_size", adapter.encoder_hidden_size, at_least(1));
  v.key("encoder_reparameterization_type", adapter.encoder_reparameterization_type, one_of({"MLP", "LSTM"}));
  v.key("encoder_num_layers", adapter.encoder_num_layers, at_least(1));
  v.key("encoder_dropout", adapter.encoder_dropout, fraction());
  v.key("prompt_tuning_init", adapter.prompt_tuning_init, one_of({"RANDOM", "SAMPLE_VOCAB", "TEXT"}));
  v.key("prompt_tuning_init_text", adapter.prompt_tuning_init_text);
}

template <class Visitor>
void describe_bottleneck(Visitor& v, AdapterSection& adapter) {
  v.key("preset", adapter.preset, one_of({"houlsby", "pfeiffer", "parallel"}));
  v.key("mh_adapter", adapter.mh_adapter);
  v.key("output_adapter", adapter.output_adapter);
  v.key("original_ln_before", adapter.original_ln_before);
  v.key("is_parallel", adapter.is_parallel);
  v.key("reduction_factor", adapter.reduction_factor, greater_than(0));
  v.key("non_linearity", adapter.non_linearity,
        one_of({"relu", "swish", "silu", "gelu", "gelu_new", "tanh", "sigmoid", "leakyrelu", "elu"}));
  v.key("scaling", adapter.scaling);
  v.key("learn_scaling", adapter.learn_scaling);
  v.key("dropout", adapter.dropout, fraction());
  v.key("init_weights", adapter.init_weights, one_of({"zero", "bert"}));
  v.key("leave_out", adapter.leave_out, at_least(0).or_single());
}

template <class Visitor>
void describe_data_driven_starts(Visitor& v, AdapterSection& adapter) {
  v.section("eva_config", [&] {
    v.key("rho", adapter.eva_config.rho, at_least(1));
    v.key("tau", adapter.eva_config.tau, between(0, 1));
    v.key("use_label_mask", adapter.eva_config.use_label_mask);
    v.key("label_mask_value", adapter.eva_config.label_mask_value);
    v.key("whiten", adapter.eva_config.whiten);
    v.key("adjust_scaling_factors", adapter.eva_config.adjust_scaling_factors);
  });
  v.section("loftq_config", [&] {
    v.key("loftq_bits", adapter.loftq_config.loftq_bits, between(4, 8));
    v.key("loftq_iter", adapter.loftq_config.loftq_iter, between(1, 1000));
  });
}

template <class Visitor>
void describe_adapter(Visitor& v, AdapterSection& adapter) {
  v.key(
      "method", adapter.method,
      one_of({"lora", "adalora", "ia3", "trainable_tokens", "prefix", "prompt", "ptuning", "ptuning_v2", "bottleneck", "none"}));
  v.key("r", adapter.r, at_least(1));
  v.key("lora_alpha", adapter.lora_alpha, greater_than(0));
  v.key("lora_dropout", adapter.lora_dropout, fraction());
  v.key("use_rslora", adapter.use_rslora);
  v.key("init_lora_weights", adapter.init_lora_weights,
        one_of({"true", "false", "gaussian", "orthogonal", "pissa", "pissa_niter_N", "olora", "eva", "loftq"})
            .with_later({"corda", "lora_ga"}));
  describe_data_driven_starts(v, adapter);
  v.key("bias", adapter.bias, one_of({"none", "all", "lora_only"}));
  v.key("target_modules", adapter.target_modules);
  v.key("exclude_modules", adapter.exclude_modules);
  v.key("modules_to_save", adapter.modules_to_save);
  v.key("trainable_token_indices", adapter.trainable_token_indices, at_least(0));
  v.key("fused_rows", adapter.fused_rows, one_of({"q", "k", "v"}));
  v.key("layers_to_transform", adapter.layers_to_transform, at_least(0).or_single());
  v.key("layers_pattern", adapter.layers_pattern, Rule{}.or_single());
  v.key("rank_pattern", adapter.rank_pattern, at_least(1));
  v.key("alpha_pattern", adapter.alpha_pattern, at_least(1));
  v.key("use_dora", adapter.use_dora);
  describe_adalora(v, adapter);
  v.key("feedforward_modules", adapter.feedforward_modules);
  describe_virtual_tokens(v, adapter);
  describe_bottleneck(v, adapter);
  v.key("init_from", adapter.init_from);
  v.key("tokens_from", adapter.tokens_from);
}

template <class Visitor>
void describe_quantization(Visitor& v, QuantizationSection& quantization) {
  v.key("bits", quantization.bits, between(4, 8));
  v.key("type", quantization.type, one_of({"nf4", "fp4"}));
  v.key("double", quantization.double_quantized);
  v.key("block_size", quantization.block_size, between(32, 4096));
}

template <class Visitor>
void describe_data(Visitor& v, DataSection& data) {
  v.key("format", data.format, one_of({known_names().formats.begin(), known_names().formats.end()}));
  v.key("template", data.prompt_template);
  v.section("train", [&] {
    v.key("path", data.train.path);
    v.key("shuffle", data.train.shuffle);
  });
  v.section("eval", [&] {
    v.key("path", data.eval.path);
    v.only("shuffle", "false");
  });
  v.key("max_source_length", data.max_source_length, at_least(1));
  v.key("max_target_length", data.max_target_length, at_least(1));
  v.key("max_length", data.max_length, at_least(2));
  v.key("on_long", data.on_long, one_of({"truncate", "error"}));
  v.key("on_bad_row", data.on_bad_row, one_of({"error", "skip"}));
  v.key("on_overlap", data.on_overlap, one_of({"warn", "drop", "error"}).with_effect(Effect::kNone));
  v.key("require_end_token", data.require_end_token);
  v.key("prompt_column", data.prompt_column);
  v.key("response_column", data.response_column);
  v.section("loader", [&] {
    v.key("workers", data.loader.workers, between(0, 256).with_absent_word("auto").with_effect(Effect::kNone));
    v.key("prefetch", data.loader.prefetch, between(1, 1024).with_effect(Effect::kNone));
    v.key("drop_last", data.loader.drop_last);
  });
  v.key("packing", data.packing);
  v.key("cache_dir", data.cache_dir, with_effect(Effect::kNone));
  v.key("train_on_sop", data.train_on_sop);
  v.key("ignore_pad_in_loss", data.ignore_pad_in_loss);
}

template <class Visitor>
void describe_amp(Visitor& v, AmpSection& amp) {
  v.key("dtype", amp.dtype, one_of({"fp32", "bf16", "fp16"}));
  v.key("loss_scale", amp.static_loss_scale, greater_than(0).with_absent_word("dynamic"));
  v.section("scaler", [&] {
    v.key("init", amp.scaler.init, Rule{.least = 0, .most = 0x1p100, .least_is_open = true});  // GradScaler::kMaxScale
    v.key("factor", amp.scaler.factor, greater_than(1));
    v.key("window", amp.scaler.window, at_least(1));
    v.key("min", amp.scaler.min, greater_than(0));
  });
}

template <class Visitor>
void describe_optimizer(Visitor& v, OptimizerSection& optimizer) {
  v.key("type", optimizer.type, one_of({"adamw", "sgd"}));
  v.key("lr", optimizer.lr, greater_than(0));
  v.key("betas", optimizer.betas, fraction().with_length(2));
  v.key("eps", optimizer.eps, greater_than(0));
  v.key("weight_decay", optimizer.weight_decay, at_least(0));
  v.key("momentum", optimizer.momentum, fraction());
  v.key("no_decay", optimizer.no_decay, of_kind(TextKind::kPattern));
  v.key("bias_correction", optimizer.bias_correction);
  v.key("master_weights", optimizer.master_weights);
  v.key("loraplus_lr_ratio", optimizer.loraplus_lr_ratio, greater_than(0));
}

/// A program of which nobody registered callbacks has none to choose from.
inline Rule known_callback() {
  const std::vector<std::string>& names = known_names().callbacks;
  if (!names.empty()) return one_of({names.begin(), names.end()});
  return {.has_form = [](std::string_view) { return false; }, .form = "a callback that this program registered, which has none"};
}

template <class Visitor>
void describe_train(Visitor& v, TrainSection& train) {
  v.key("epochs", train.epochs, at_least(1).with_effect(Effect::kHorizon));
  v.key("max_steps", train.max_steps, at_least(-1).with_effect(Effect::kHorizon));
  v.key("micro_batch", train.micro_batch, at_least(1));
  v.key("grad_accum", train.grad_accum, at_least(1));
  v.key("clip_norm", train.clip_norm, at_least(0));
  v.section("amp", [&] { describe_amp(v, train.amp); });
  v.section("optimizer", [&] { describe_optimizer(v, train.optimizer); });
  v.section("lr_schedule", [&] {
    v.key("type", train.lr_schedule.type, one_of({"constant", "linear", "cosine", "polynomial"}));
    v.key("warmup_steps", train.lr_schedule.warmup_steps, at_least(0));
    v.key("end", train.lr_schedule.end, at_least(0));
    v.key("power", train.lr_schedule.power, greater_than(0));
    v.key("count_skipped", train.lr_schedule.count_skipped);
  });
  v.key("loss_reduction", train.loss_reduction, one_of({"valid_tokens", "all_positions"}));
  v.key("on_nonfinite", train.on_nonfinite, one_of({"skip", "stop"}));
  v.key("max_nonfinite", train.max_nonfinite, at_least(1).with_alias("max_skips"));
  v.key("log_interval", train.log_interval, at_least(1).with_effect(Effect::kNone));
  v.key("eval_interval", train.eval_interval, at_least(0).with_effect(Effect::kNone));
  v.section("early_stop", [&] {
    v.key("patience", train.early_stop.patience, at_least(1).with_effect(Effect::kNone));
    v.key("min_delta", train.early_stop.min_delta, at_least(0).with_effect(Effect::kNone));
  });
  v.key("callbacks", train.callbacks, known_callback().with_effect(Effect::kNone));
  v.key("recompute", train.recompute, one_of({"none", "selective", "full"}).with_effect(Effect::kNone));
  v.key("offload_activations", train.offload_activations, with_effect(Effect::kNone));
}

template <class Visitor>
void describe_eval(Visitor& v, EvalSection& eval) {
  const std::vector<std::string>& names = known_names().metrics;
  v.key("metrics", eval.metrics, one_of({names.begin(), names.end()}).with_effect(Effect::kNone));
  v.key("segmenter", eval.segmenter, one_of({"char", "whitespace", "dict"}).with_effect(Effect::kNone));
  v.key("dictionary", eval.dictionary, with_effect(Effect::kNone));
  v.key("max_new_tokens", eval.max_new_tokens, at_least(1).with_effect(Effect::kNone));
}

/// Several processes: settings that only their defaults fit.
template <class Visitor>
void describe_parts_to_come(Visitor& v) {
  v.section("parallel", [&] {
    for (const auto* name : {"data", "tensor", "pipeline"}) v.only(name, "1");
    v.only("zero", "0");
    v.only("backend", "auto");
    v.only("timeout_seconds", "600");
    v.only("connect_timeout_seconds", "300");
    v.only("interface", "null");
  });
}

/// Every key, in the order in which a resolved configuration is written.
template <class Visitor>
void describe(Visitor& v, RunConfig& config) {
  const auto harmless = with_effect(Effect::kNone);
  v.section("run", [&] { describe_run(v, config.run); });
  v.section("model", [&] { describe_model(v, config.model); });
  v.section("tokenizer", [&] { v.key("path", config.tokenizer.path); });
  v.section("adapter", [&] {
    describe_adapter(v, config.adapter);
    v.section("quantization", [&] { describe_quantization(v, config.adapter.quantization); });
    v.named("also", config.more_adapters, [&](NamedAdapter& one) { describe_adapter(v, one.adapter); });
  });
  v.section("freeze", [&] {
    v.key("train", config.freeze.train, of_kind(TextKind::kPattern));
    v.key("freeze", config.freeze.freeze, of_kind(TextKind::kPattern));
  });
  v.section("data", [&] { describe_data(v, config.data); });
  v.section("train", [&] { describe_train(v, config.train); });
  v.section("checkpoint", [&] {
    v.key("every_steps", config.checkpoint.every_steps, at_least(0).with_effect(Effect::kNone));
    v.key("keep", config.checkpoint.keep, at_least(1).with_effect(Effect::kNone));
    v.key("save_optimizer", config.checkpoint.save_optimizer, harmless);
    v.key("keep_best", config.checkpoint.keep_best, harmless);
    v.key("load_best_at_end", config.checkpoint.load_best_at_end, harmless.with_alias("load_best_model_at_end"));
  });
  v.section("eval", [&] { describe_eval(v, config.eval); });
  v.section("generate", [&] {
    v.key("temperature", config.generate.temperature, at_least(0));
    v.key("top_p", config.generate.top_p, Rule{.least = 0, .most = 1, .least_is_open = true});
    v.key("top_k", config.generate.top_k, at_least(0));
    v.key("max_new_tokens", config.generate.max_new_tokens, at_least(1));
    v.key("prompt_lookup_num_tokens", config.generate.prompt_lookup_num_tokens, at_least(0).with_effect(Effect::kNone));
    v.key("repetition_penalty", config.generate.repetition_penalty, greater_than(0));
    v.key("num_beams", config.generate.num_beams, between(1, 1000));
    v.key("length_penalty", config.generate.length_penalty);
    v.key("batch_size", config.generate.batch_size, between(1, 4096).with_effect(Effect::kNone));
  });
  v.section("log", [&] {
    v.key("metrics", config.log.metrics, of_kind(TextKind::kInsideOutput).with_effect(Effect::kNone));
    v.key("report", config.log.report, harmless);
    v.key("samples", config.log.samples, at_least(0).with_effect(Effect::kNone));
    v.only("tensorboard", "false");
  });
  describe_parts_to_come(v);
}

}  // namespace lora::config
