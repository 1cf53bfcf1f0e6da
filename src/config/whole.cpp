#include "config/whole.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "config/adapter_keys.h"
#include "core/check.h"
#include "lora/config/known_names.h"
#include "lora/core/error.h"
#include "lora/core/quantization.h"

namespace lora::config {
namespace {

class WholeCheck {
 public:
  WholeCheck(const Places& places, std::string_view name) : places_(places), name_(name) {}

  void required(bool is_given, std::string_view keys, std::string_view example) const {
    require<ConfigError>(is_given, "[{}] {} must be given; found nothing; add for example {}", name_, keys, example);
  }

  /// `key` is named with its line when it was given.
  void holds(bool condition, const std::string& key, std::string_view must) const {
    require<ConfigError>(condition, "[{}] {} {}", place_of(key), key, must);
  }

  std::string place_of(const std::string& key) const {
    const auto place = places_.find(key);
    return place == places_.end() ? std::string(name_) : place->second;
  }

 private:
  const Places& places_;
  std::string_view name_;
};

bool trains(std::string_view mode) { return mode == "train" || mode == "finetune"; }

void check_required(const WholeCheck& check, const RunConfig& config, std::string_view mode) {
  check.required(!config.run.output_dir.empty(), "run.output_dir", "run: {output_dir: out}");
  check.required(config.model.path || config.model.arch, "model.path or model.arch", "model: {path: DIRECTORY}");
  check.required(!config.data.format.empty(), "data.format", "data: {format: alpaca}");
  if (trains(mode)) {
    check.required(config.data.train.path.has_value(), "data.train.path", "data: {train: {path: train.json}}");
  } else {
    check.required(config.data.eval.path.has_value(), "data.eval.path", "data: {eval: {path: dev.json}}");
  }
}

void check_evaluation(const WholeCheck& check, const RunConfig& config, std::string_view mode) {
  if (trains(mode)) return;
  check.holds((config.eval.segmenter == "dict") == config.eval.dictionary.has_value(), "eval.dictionary",
              fmt::format("belongs to eval.segmenter dict, which needs it; found segmenter {} and {} dictionary",
                          config.eval.segmenter, config.eval.dictionary ? "a" : "no"));
  check.holds(config.generate.num_beams == 1 || config.generate.temperature == 0, "generate.num_beams",
              fmt::format("searches at generate.temperature 0; found temperature {}; set it to 0", config.generate.temperature));
}

void check_template(const WholeCheck& check, const DataSection& data) {
  constexpr std::array<std::string_view, 5> kWithout = {"adgen", "completion", "text", "tokens", "records"};
  check.holds(
      !data.prompt_template || std::ranges::find(kWithout, data.format) == kWithout.end(), "data.template",
      fmt::format("is the form of conversations, data.format chat, sharegpt or alpaca; found format {}; remove it", data.format));
}

void check_model(const WholeCheck& check, const ModelSection& model) {
  constexpr std::string_view kFresh = "needs fresh weights; found model.path as well; remove one of the two";
  check.holds(!model.path || !model.arch, "model.arch", kFresh);
  check.holds(!model.path || !model.preset, "model.preset", kFresh);
  const auto& of_loaded = known_names().loaded_fields;
  for (const auto& [name, text] : model.fields) {
    check.holds(!model.path || std::ranges::find(of_loaded, name) != of_loaded.end(), "model." + name, kFresh);
  }
  check.holds(model.offload != "disk" || model.path, "model.offload",
              "disk streams the weights from the files of model.path; found no model.path; use cpu or none");
}

void check_offload(const WholeCheck& check, const RunConfig& config, std::string_view mode) {
  check.holds(config.model.offload == "none" || mode != "train", "model.offload",
              fmt::format("streams the frozen base of lora finetune; found {} with lora {}, which trains the base; remove "
                          "the key",
                          config.model.offload, mode));
  check.holds(!config.train.offload_activations || config.train.recompute != "none", "train.offload_activations",
              "moves what recomputation keeps; found train.recompute: none; set it to selective or full");
}

/// A key that another method knows is a misunderstanding, not a preference.
void check_adapter(const WholeCheck& check, const AdapterSection& adapter, const std::string& section = "adapter") {
  for (const auto& key : keys_of_other_methods(adapter)) {
    check.holds(false, fmt::format("{}.{}", section, key),
                fmt::format("belongs to adapter.method {}; found it with {}; remove it or change the method",
                            fmt::join(methods_of_key(key), ", "), adapter.method));
  }
  check.holds(adapter.method == "bottleneck" || adapter.init_weights.value_or("zero") == "zero", section + ".init_weights",
              fmt::format("must be zero with adapter.method {}, which begins at random without it; found {}; remove the key",
                          adapter.method, adapter.init_weights.value_or("")));
}

/// Which rows train is said of lora_B, whose others must be zero from the beginning.
void check_fused_rows(const WholeCheck& check, const AdapterSection& adapter, const std::string& section = "adapter") {
  if (!adapter.fused_rows) return;
  const std::string key = section + ".fused_rows";
  check.holds(!adapter.fused_rows->empty(), key, "must name some of q, k, v; found none; remove the key");
  check.holds(!adapter.use_dora.value_or(false), key,
              "goes without use_dora, which trains a magnitude of every row; found both; remove one");
  const std::string bias = adapter.bias.value_or("none");
  check.holds(bias == "none", key, fmt::format("goes with bias: none, since biases train whole; found {}; remove one", bias));
  const std::string init = adapter.init_lora_weights.value_or("true");
  check.holds(
      adapter.init_from || init == "true" || init == "gaussian", key,
      fmt::format(
          "goes with init_lora_weights true and gaussian, where lora_B begins at zero and stays in place; found {}; change one",
          init));
}

void check_token_indices(const WholeCheck& check, const AdapterSection& adapter, const std::string& section = "adapter") {
  const std::string key = section + ".trainable_token_indices";
  const bool is_alone = adapter.method == "trainable_tokens";
  check.required(!is_alone || adapter.trainable_token_indices || adapter.init_from, key,
                 "adapter: {trainable_token_indices: [32000, 32001]}");
  check.holds(!adapter.tokens_from || (adapter.trainable_token_indices && !adapter.init_from), section + ".tokens_from",
              "needs trainable_token_indices beside it, and no init_from, which brings all values; change one of the keys");
  if (!adapter.trainable_token_indices) return;
  const auto* ids = std::get_if<0>(&*adapter.trainable_token_indices);
  check.holds(!is_alone || ids != nullptr, key,
              "must be one list with adapter.method trainable_tokens, which has target_modules for the "
              "rest; found a map");
  const bool has_ids = ids != nullptr ? !ids->empty() : !std::get<1>(*adapter.trainable_token_indices).empty();
  check.holds(has_ids, key, "must name a token at least; found none; remove the key");
}

void check_more_adapters(const WholeCheck& check, const RunConfig& config) {
  check.holds(config.more_adapters.empty() || config.adapter.method != "none", "adapter.method",
              "must be a method where adapter.also has more; found none; make one of those the first, or remove adapter.also");
  for (const auto& [name, adapter] : config.more_adapters) {
    const std::string section = "adapter.also." + name;
    check.holds(name != "default", section, "must have another name: adapter itself is default; found default twice");
    check.holds(adapter.method != "none", section + ".method", "must be a method; found none; remove the adapter");
    check_adapter(check, adapter, section);
    check_fused_rows(check, adapter, section);
    check_token_indices(check, adapter, section);
  }
}

void check_quantization(const WholeCheck& check, const RunConfig& config, std::string_view mode) {
  const QuantizationSection& quantization = config.adapter.quantization;
  const std::string section = "adapter.quantization";
  const bool says_how = quantization.type || quantization.double_quantized || quantization.block_size;
  check.required(quantization.bits || !says_how, section + ".bits", "adapter: {quantization: {bits: 4}}");
  if (!quantization.bits) return;
  const std::string bits = section + ".bits";
  check.holds(*quantization.bits == 4 || *quantization.bits == 8, bits,
              fmt::format("must be 4 or 8; found {}", *quantization.bits));
  check.holds(*quantization.bits == 4 || !says_how, bits, "takes no type, double or block_size with 8; found some; remove them");
  const int64_t block = quantization.block_size.value_or(QuantizationScheme{}.block_size);
  check.holds(is_quantized_block_size(block), section + ".block_size",
              fmt::format("must be a power of two from 32 to 4096; found {}", block));
  check.holds(mode != "train" && config.adapter.method != "none", bits,
              fmt::format("keeps the frozen base of an adapter in few bits; found lora {} with adapter.method {}; remove the key",
                          mode, config.adapter.method));
  check.holds(
      config.model.offload == "none", "model.offload",
      fmt::format("must be none with {}: a base in few bits is held, not streamed; found {}", section, config.model.offload));
}

/// Keys of an init belong to it.
void check_keys_of_init(const WholeCheck& check, const AdapterSection& adapter, const std::string& section) {
  const std::string init = adapter.init_lora_weights.value_or("true");
  const auto belongs = [&](bool is_given, std::string_view key, std::string_view owner) {
    check.holds(
        !is_given || init == owner, fmt::format("{}.{}", section, key),
        fmt::format("belongs to adapter.init_lora_weights {}; found it with {}; remove it or change the init", owner, init));
  };
  belongs(!(adapter.eva_config == EvaSection{}), "eva_config", "eva");
  belongs(!(adapter.loftq_config == LoftqSection{}), "loftq_config", "loftq");
}

/// loftq needs something to make up for, and one adapter does.
void check_starts(const WholeCheck& check, const RunConfig& config) {
  const AdapterSection& adapter = config.adapter;
  if (adapter.method == "none") return;
  check_keys_of_init(check, adapter, "adapter");
  for (const auto& [name, other] : config.more_adapters) {
    const std::string section = "adapter.also." + name;
    check_keys_of_init(check, other, section);
    check.holds(other.init_lora_weights != "loftq", section + ".init_lora_weights",
                "must be that of one adapter where it is loftq; found it here; give it to the section adapter itself");
  }
  const std::string init = adapter.init_lora_weights.value_or("true");
  if (init != "loftq" || adapter.init_from) return;
  const std::string key = "adapter.init_lora_weights";
  check.holds(adapter.quantization.bits.has_value(), key,
              "loftq makes up for what quantising takes from the base; found no adapter.quantization; add for example "
              "quantization: {bits: 4}");
  check.holds(config.model.path.has_value(), key, "loftq reads the plain weights from model.path; found none; use another init");
  const int64_t bits = adapter.loftq_config.loftq_bits.value_or(*adapter.quantization.bits);
  check.holds(bits == *adapter.quantization.bits, "adapter.loftq_config.loftq_bits",
              fmt::format("must be adapter.quantization.bits = {}; found {}; leave it out", *adapter.quantization.bits, bits));
}

void check_training(const WholeCheck& check, const RunConfig& config) {
  const TrainSection& train = config.train;
  const ScalerSection& scaler = train.amp.scaler;
  check.holds(train.lr_schedule.end <= train.optimizer.lr, "train.lr_schedule.end",
              fmt::format("must be at most train.optimizer.lr = {}; found {}", train.optimizer.lr, train.lr_schedule.end));
  check.holds(scaler.min <= scaler.init, "train.amp.scaler.min",
              fmt::format("must be at most train.amp.scaler.init = {}; found {}", scaler.init, scaler.min));
  check.holds(train.eval_interval == 0 || config.data.eval.path, "train.eval_interval",
              fmt::format("must be 0 without data.eval.path; found {}; give the data to evaluate on", train.eval_interval));
}

/// What compares held-out losses needs some.
void check_evaluations(const WholeCheck& check, const RunConfig& config) {
  const auto& [patience, min_delta] = config.train.early_stop;
  const auto needs_evaluations = [&](bool is_asked, const std::string& key) {
    check.holds(!is_asked || config.train.eval_interval > 0, key,
                "needs held-out losses on the way; found train.eval_interval: 0; set it, and data.eval.path");
  };
  needs_evaluations(config.checkpoint.keep_best, "checkpoint.keep_best");
  needs_evaluations(patience.has_value(), "train.early_stop.patience");
  check.holds(patience || min_delta == 0, "train.early_stop.min_delta",
              "belongs to train.early_stop.patience; found none; add it");
  check.holds(config.checkpoint.keep_best || !config.checkpoint.load_best_at_end, "checkpoint.load_best_at_end",
              "needs what checkpoint.keep_best keeps; found false; set it to true");
  const bool has_model_beside = config.checkpoint.keep_best && !config.freeze.train.empty();
  for (const auto& one : config.more_adapters) {
    check.holds(!has_model_beside || one.name != "model", "adapter.also." + one.name,
                "must have another name with checkpoint.keep_best and freeze.train, which put the base there; found model twice");
  }
}

void check_named_once(const WholeCheck& check, const std::string& key, const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    check.holds(std::ranges::count(names, name) == 1, key, fmt::format("must name each once; found {} again", name));
  }
}

}  // namespace

void check_whole(const RunConfig& config, const Places& places, std::string_view name, std::string_view command) {
  const WholeCheck check(places, name);
  const std::string mode = config.run.mode.value_or(std::string(command));
  check.holds(mode == command, "run.mode",
              fmt::format("must equal the sub-command {}; found {}; run lora {} or remove the key", command, mode, mode));
  check_required(check, config, mode);
  check_template(check, config.data);
  check_model(check, config.model);
  check_adapter(check, config.adapter);
  check_more_adapters(check, config);
  check_fused_rows(check, config.adapter);
  check_token_indices(check, config.adapter);
  check_training(check, config);
  check_evaluations(check, config);
  check_named_once(check, "train.callbacks", config.train.callbacks);
  check_named_once(check, "eval.metrics", config.eval.metrics);
  check_offload(check, config, mode);
  check_quantization(check, config, mode);
  check_starts(check, config);
  check_evaluation(check, config, mode);
}

}  // namespace lora::config
