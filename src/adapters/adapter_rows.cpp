#include "lora/adapters/adapter_rows.h"

#include <algorithm>
#include <map>

#include "adapters/state.h"
#include "core/check.h"
#include "lora/adapters/inject.h"
#include "lora/nn/causal_lm.h"

namespace lora {
namespace {

using RowsOf = std::map<std::string, std::vector<int64_t>>;

RowsOf rows_by_name(const std::vector<std::string>& names) {
  RowsOf rows;
  for (size_t i = 0; i < names.size(); ++i) rows[names[i]].push_back(static_cast<int64_t>(i));
  return rows;
}

void require_known(const RowsOf& rows, const std::vector<AdapterSet>& sets) {
  std::vector<std::string> known = {std::string(kBaseRows)};
  for (const auto& set : sets) known.push_back(set.name());
  for (const auto& [name, unused] : rows) {
    require<ConfigError>(std::ranges::find(known, name) != known.end(),
                         "[adapter_rows] every row must name an adapter of the model; found {:?}; name one of {}", name,
                         fmt::join(known, ", "));
  }
}

/// Values that stand in the model itself are the same for all rows.
void require_no_whole_parameters(const AdapterSet& set, bool chosen) {
  const bool has_whole = !set.saved_parameters().empty() || !set.biases().empty();
  require<ConfigError>(!has_whole || !(chosen || set.is_active()),
                       "[adapter_rows] adapters by row must not train parameters whole "
                       "(modules_to_save, biases), which all "
                       "rows would share; found some in {:?}; {}",
                       set.name(), chosen ? "run its rows by themselves" : "activate another adapter first");
}

/// A low-rank update that is added, and nothing else.
bool is_plain_lora(const AdapterSet::Slot& slot) {
  if (slot.adapter->scales()) return false;
  if (!slot.linear.is_empty()) return !slot.adapter->adds() || slot.adapter->low_rank().has_value();
  return dynamic_cast<const LoraEmbedding*>(slot.adapter.get()) != nullptr;
}

/// Virtual tokens and networks at block outputs are the same for all rows, too.
void require_in_weights(const AdapterSet& set, bool chosen) {
  require<ConfigError>((set.blocks().empty() && !set.prompt()) || !(chosen || set.is_active()),
                       "[adapter_rows] adapters by row must be LoRA; found {} in {:?}, which serves all rows; {}",
                       method_name(set.options()), set.name(),
                       chosen ? "run its rows by themselves" : "activate another adapter first");
}

void require_ready(const AdapterSet& set, const AdapterSet::Slot& slot, bool chosen) {
  const auto& state = adapters::slot_of(slot);
  require<ConfigError>(state.merged().empty(),
                       "[adapter_rows] nothing may be merged, since a weight serves all rows; found {} "
                       "merged at {}; unmerge first",
                       fmt::join(state.merged(), ", "), slot.path);
  require<ConfigError>(state.enabled(),
                       "[adapter_rows] adapters must be switched on; found them off at {}; call "
                       "set_enabled(true)",
                       slot.path);
  require<ConfigError>(!chosen || is_plain_lora(slot),
                       "[adapter_rows] adapters by row must be LoRA; found another method in "
                       "{:?} at {}; run its rows by themselves",
                       set.name(), slot.path);
}

}  // namespace

AdapterRows::AdapterRows(torch::nn::Module& model, const std::vector<std::string>& names) {
  require<ConfigError>(!model.is_training(),
                       "[adapter_rows] rows choose adapters at inference only; found a model in training "
                       "mode; call eval()");
  const auto rows = rows_by_name(names);
  const auto sets = adapters_of(model);
  require_known(rows, sets);
  nn::RowAdapters::Choice choice;
  for (const auto& set : sets) {
    const auto own = rows.find(set.name());
    const bool chosen = own != rows.end();
    require_no_whole_parameters(set, chosen);
    require_in_weights(set, chosen);
    for (const auto& slot : set.slots()) {
      require_ready(set, slot, chosen);
      auto& groups = choice[&adapters::slot_of(slot)];
      if (chosen) groups.push_back({slot.adapter, own->second});
    }
  }
  const bool is_language_model = dynamic_cast<const nn::CausalLMImpl*>(&model) != nullptr;
  rows_ = std::make_unique<nn::RowAdapters>(choice, static_cast<int64_t>(names.size()), is_language_model ? 3 : 2);
}

}  // namespace lora
