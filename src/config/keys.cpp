#include "config/keys.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "config/scalar.h"
#include "config/schema.h"
#include "core/check.h"
#include "lora/core/error.h"
#include "lora/core/text.h"

namespace lora::config {
namespace {

/// What transformers, LLaMA-Factory and MindFormers call our keys.
const std::map<std::string_view, std::string_view> kNamesElsewhere = {{"batch_size", "train.micro_batch"},
                                                                      {"per_device_train_batch_size", "train.micro_batch"},
                                                                      {"per_device_eval_batch_size", "generate.batch_size"},
                                                                      {"gradient_accumulation_steps", "train.grad_accum"},
                                                                      {"learning_rate", "train.optimizer.lr"},
                                                                      {"num_train_epochs", "train.epochs"},
                                                                      {"lr_scheduler_type", "train.lr_schedule.type"},
                                                                      {"max_grad_norm", "train.clip_norm"},
                                                                      {"optim", "train.optimizer.type"},
                                                                      {"bf16", "train.amp.dtype"},
                                                                      {"fp16", "train.amp.dtype"},
                                                                      {"logging_steps", "train.log_interval"},
                                                                      {"eval_steps", "train.eval_interval"},
                                                                      {"save_steps", "checkpoint.every_steps"},
                                                                      {"save_total_limit", "checkpoint.keep"},
                                                                      {"gradient_checkpointing", "train.recompute"},
                                                                      {"model_name_or_path", "model.path"},
                                                                      {"lora_rank", "adapter.r"},
                                                                      {"lora_target", "adapter.target_modules"},
                                                                      {"quantization_bit", "adapter.quantization.bits"},
                                                                      {"cutoff_len", "data.max_length"},
                                                                      {"dataset", "data.train.path"},
                                                                      {"val_size", "data.eval.path"},
                                                                      {"runner_config", "train"},
                                                                      {"load_checkpoint", "model.path"}};

/// The schema as full names, such as train.optimizer and train.optimizer.lr.
class KeyList {
 public:
  KeyList() {
    RunConfig config;
    describe(*this, config);
  }

  template <class Body>
  void section(std::string_view name, const Body& body) {
    const std::string outer = prefix_;
    sections_.insert(prefix_ + std::string(name));
    prefix_ += fmt::format("{}.", name);
    body();
    prefix_ = outer;
  }
  template <class Item, class Body>
  void named(std::string_view name, std::vector<Item>&, const Body& body) {
    section(name, [&] {
      named_.insert(prefix_);
      Item any;
      section(kAnyName, [&] { body(any); });
    });
  }
  template <class T>
  void key(std::string_view name, T&, const Rule& rule = {}) {
    add(name);
    if (!rule.alias.empty()) add(rule.alias);
  }
  void only(std::string_view name, std::string_view) { add(name); }

  /// The full name in the schema of what is called `name` under `prefix`.
  std::string full_name(const std::string& prefix, const std::string& name) const {
    return prefix + (named_.contains(prefix) ? std::string(kAnyName) : name);
  }
  bool is_section(const std::string& name) const { return sections_.contains(name); }
  bool contains(const std::string& name) const {
    return is_section(name) || std::find(keys_.begin(), keys_.end(), name) != keys_.end();
  }

  /// Full names that `name`, which stands under `prefix`, may have been meant to be: what is called so elsewhere, the same name
  /// in other sections, else the one under `prefix` that is spelled most alike.
  std::vector<std::string> suggestions(const std::string& prefix, std::string_view name) const {
    if (const auto known = kNamesElsewhere.find(name); known != kNamesElsewhere.end()) return {std::string(known->second)};
    std::vector<std::string> same, neighbours;
    for (const std::string& key : keys_) {
      const bool is_repeated = key.find(kAnyName) != std::string::npos;  // those keys stand elsewhere as well
      if (!is_repeated && key.ends_with(fmt::format(".{}", name))) same.push_back(key);
    }
    if (!same.empty()) return same;
    for (const std::string& key : names_under(prefix)) neighbours.push_back(key.substr(prefix.size()));
    return {prefix + nearest_names(name, neighbours, 1).front()};
  }

 private:
  void add(std::string_view name) { keys_.push_back(prefix_ + std::string(name)); }

  std::vector<std::string> names_under(const std::string& prefix) const {
    std::vector<std::string> names;
    const auto add_direct = [&](const std::string& name) {
      if (name.starts_with(prefix) && name.find('.', prefix.size()) == std::string::npos) names.push_back(name);
    };
    std::for_each(keys_.begin(), keys_.end(), add_direct);
    std::for_each(sections_.begin(), sections_.end(), add_direct);
    return names;
  }

  /// Stands for the names of a map that chooses them itself.
  static constexpr std::string_view kAnyName = "NAME";

  std::string prefix_;
  std::set<std::string> sections_, named_;
  std::vector<std::string> keys_;
};

void check_map(const KeyList& known, const YamlNode& map, const std::string& prefix, const Source& source) {
  for (const auto& [name, value] : map.entries) {
    const std::string key = known.full_name(prefix, name);
    if (name.find('.') != std::string::npos) {
      fail<ConfigError>("[{}] a key of the run file has no dot in it; found {}; write sections as nested maps",
                        source.place_of(value), shown(key));
    }
    if (!known.contains(key)) {
      fail<ConfigError>("[{}] unknown key {}; did you mean {}?", source.place_of(value), shown(prefix + name),
                        fmt::join(known.suggestions(prefix, name), " or "));
    }
    if (known.is_section(key)) check_map(known, value, key + ".", source);
  }
}

}  // namespace

void check_keys(const YamlNode& root, const Source& source) {
  static const KeyList known;
  check_map(known, root, "", source);
}

}  // namespace lora::config
