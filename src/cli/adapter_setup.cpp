#include "cli/adapter_setup.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "cli/method_options.h"
#include "cli/saved_adapter.h"
#include "core/check.h"
#include "lora/adapters/adapter_io.h"
#include "lora/adapters/eva.h"
#include "lora/adapters/fused_rows.h"
#include "lora/adapters/inject.h"
#include "lora/adapters/loftq.h"
#include "lora/adapters/token_start.h"
#include "lora/core/log.h"
#include "lora/io/adapter_files.h"
#include "lora/io/model_files.h"
#include "lora/io/quantized.h"

namespace lora::cli {
namespace {

using config::RunConfig;

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

}  // namespace

std::optional<Path> own_base(const RunConfig& config) {
  const bool iterates = starts_as(config.adapter, "loftq") && config.adapter.loftq_config.loftq_iter.value_or(1) > 1;
  return iterates ? std::optional(config.run.output_dir / "base") : std::nullopt;
}

RunConfig with_base_of(const Path& adapter, const RunConfig& config) {
  const MethodOptions options = options_from(io::read_adapter_config(adapter));
  const auto* lora = std::get_if<LoraOptions>(&options);
  if (lora == nullptr || !lora->loftq || lora->loftq->iterations <= 1) return config;
  for (const Path& base : {Path(lora->base_model_name), adapter.parent_path() / "base"}) {
    if (base.empty() || !std::filesystem::is_directory(base)) continue;
    RunConfig changed = config;
    changed.model.path = base;
    return changed;
  }
  log::warn(
      fmt::format("[adapter] the adapter in {} fits only the base that its run saved in {} (LoftQ with {} iterations), which is "
                  "not there; model.path is taken for it",
                  adapter.string(), lora->base_model_name, lora->loftq->iterations));
  return config;
}

void start_adapters(const RunConfig& config, nn::CausalLMImpl& model, const AdapterSets& adapters, const data::Dataset& rows,
                    const data::LoaderOptions& loader) {
  const std::vector<AdapterSet>& sets = adapters.all();
  for (size_t i = 0; i < sets.size(); ++i) {
    const auto& section = i == 0 ? config.adapter : config.more_adapters.at(i - 1).adapter;
    if (!starts_as(section, "eva")) continue;
    if (sets.size() > 1) set_active_adapters(model, {sets[i].name()});
    start_eva(section.eva_config, model, sets[i], rows, loader);
    if (sets.size() > 1) activate_together(model, sets);
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

}  // namespace lora::cli
