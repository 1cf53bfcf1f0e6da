#include <algorithm>
#include <vector>

#include "config/flatten.h"
#include "lora/config/run_config.h"

namespace lora::config {
namespace {

/// A constant learning rate is the same however long the run is; the others depend on its total, and so do AdaLoRA's ranks
/// where nothing else says when they are final.
bool looks_ahead(const RunConfig& config) {
  const auto ranks_do = [](const AdapterSection& adapter) { return adapter.method == "adalora" && !adapter.total_step; };
  const bool some_ranks_do = ranks_do(config.adapter) || std::ranges::any_of(config.more_adapters, [&](const NamedAdapter& one) {
                               return ranks_do(one.adapter);
                             });
  return some_ranks_do || config.train.lr_schedule.type != "constant";
}

constexpr const char* kNotGiven = "null";

const FlatKey* find_key(const std::vector<FlatKey>& keys, const std::string& name) {
  const auto found = std::ranges::find_if(keys, [&](const FlatKey& key) { return key.key == name; });
  return found == keys.end() ? nullptr : &*found;
}

bool has_key(const std::vector<FlatKey>& keys, const std::string& name) { return find_key(keys, name) != nullptr; }

/// Of a key that the schema has always, or of an adapter that only one of two run files has.
std::string text_of(const std::vector<FlatKey>& keys, const std::string& name) {
  const FlatKey* found = find_key(keys, name);
  return found == nullptr ? kNotGiven : found->text;
}

}  // namespace

std::vector<ConfigDifference> result_changing_differences(const RunConfig& before, const RunConfig& after) {
  const bool horizon_counts = looks_ahead(before) || looks_ahead(after);
  const std::vector<FlatKey> old_keys = flatten(before), new_keys = flatten(after);
  std::vector<ConfigDifference> differences;
  const auto compare = [&](const FlatKey& key, const std::string& old_text, const std::string& new_text) {
    const bool counts = key.effect == Effect::kResult || (key.effect == Effect::kHorizon && horizon_counts);
    if (counts && old_text != new_text) differences.push_back({key.key, old_text, new_text});
  };
  for (const FlatKey& key : old_keys) compare(key, key.text, text_of(new_keys, key.key));
  for (const FlatKey& key : new_keys) {
    if (!has_key(old_keys, key.key)) compare(key, kNotGiven, key.text);
  }
  return differences;
}

}  // namespace lora::config
