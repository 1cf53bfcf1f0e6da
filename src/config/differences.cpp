#include <vector>

#include "config/flatten.h"
#include "lora/config/run_config.h"

namespace lora::config {
namespace {

/// A constant learning rate is the same however long the run is; the others depend on its total, and so do AdaLoRA's ranks
/// where nothing else says when they are final.
bool looks_ahead(const RunConfig& config) {
  const bool ranks_do = config.adapter.method == "adalora" && !config.adapter.total_step;
  return ranks_do || config.train.lr_schedule.type != "constant";
}

}  // namespace

std::vector<ConfigDifference> result_changing_differences(const RunConfig& before,
                                                          const RunConfig& after) {
  const bool horizon_counts = looks_ahead(before) || looks_ahead(after);
  const std::vector<FlatKey> old_keys = flatten(before), new_keys = flatten(after);
  std::vector<ConfigDifference> differences;
  for (size_t i = 0; i < old_keys.size(); ++i) {  // the schema fixes keys and order
    const Effect effect = old_keys[i].effect;
    const bool counts = effect == Effect::kResult || (effect == Effect::kHorizon && horizon_counts);
    if (counts && old_keys[i].text != new_keys[i].text) {
      differences.push_back({old_keys[i].key, old_keys[i].text, new_keys[i].text});
    }
  }
  return differences;
}

}  // namespace lora::config
