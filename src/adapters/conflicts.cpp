#include "adapters/conflicts.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <string>
#include <variant>

#include "adapters/module_tree.h"
#include "adapters/state.h"
#include "core/check.h"

namespace lora::adapters {
namespace {

/// One parameter has one value: two active adapters cannot both bring theirs.
void require_separate_parameters(const std::vector<AdapterSet>& sets) {
  std::map<const void*, std::string> owner;
  const auto claim = [&](const AdapterSet& set, const AdapterSet::SavedParameter& saved) {
    const auto [place, is_new] = owner.emplace(saved.parameter.unsafeGetTensorImpl(), set.name());
    require<ConfigError>(is_new,
                         "[adapters.set_active_adapters] active adapters must not train the same "
                         "parameter whole; found "
                         "{:?} in {:?} and {:?}; activate one of them",
                         saved.name, place->second, set.name());
  };
  for (const auto& set : sets) {
    for (const auto& saved : set.saved_parameters()) claim(set, saved);
    for (const auto& bias : set.biases()) claim(set, bias);
  }
}

/// Rows of a table may be replaced by several, each its own; another method's update of the table would hold for some rows only.
void require_separate_rows(const std::vector<AdapterSet>& sets) {
  struct Claim {
    const AdapterSet* set;
    const TrainableTokens* rows;  ///< null: the whole table
  };
  std::map<const void*, std::vector<Claim>> claims;
  const auto claim = [&](const void* weight, const std::string& name, const Claim& own) {
    for (const auto& other : claims[weight]) {
      if (other.set == own.set || (other.rows == nullptr && own.rows == nullptr)) continue;
      const bool are_apart =
          other.rows != nullptr && own.rows != nullptr && std::ranges::none_of(own.rows->ids(), [&](int64_t id) {
            return std::ranges::find(other.rows->ids(), id) != other.rows->ids().end();
          });
      require<ConfigError>(are_apart,
                           "[adapters.set_active_adapters] active adapters must not change the same rows of a table; found "
                           "trainable tokens of {:?} and {:?} at {}; activate one of them",
                           other.set->name(), own.set->name(), name);
    }
    claims[weight].push_back(own);
  };
  for (const auto& set : sets) {
    for (const auto& slot : set.slots()) {
      claim(weight_form_of(slot).unsafeGetTensorImpl(), slot.path, {&set, token_rows(*slot.adapter)});
    }
    for (const auto& saved : set.saved_parameters()) claim(saved.parameter.unsafeGetTensorImpl(), saved.name, {&set, nullptr});
  }
}

/// (IA)^3 scales a layer's whole output: what it means beside another method's update would depend on their order.
void require_layers_apart(const std::vector<AdapterSet>& sets) {
  std::map<const void*, const AdapterSet*> adapted;
  const auto claim = [](const AdapterSet& set, const AdapterSet* other, const std::string& path) {
    require<ConfigError>(
        other == nullptr || other == &set ||
            std::holds_alternative<Ia3Options>(other->options()) == std::holds_alternative<Ia3Options>(set.options()),
        "[adapters.set_active_adapters] (IA)^3 and another method must not share a layer; found {:?} and {:?} at "
        "{}; activate one of them, or give them different target_modules",
        other == nullptr ? "" : other->name(), set.name(), path);
  };
  const AdapterSet *prefix = nullptr, *prompt = nullptr;
  for (const auto& set : sets) {
    for (const auto& slot : set.slots()) {
      const void* layer = slot.linear.is_empty() ? static_cast<const void*>(slot.embedding.get()) : slot.linear.get();
      const auto [place, is_new] = adapted.emplace(layer, &set);
      if (!is_new) claim(set, place->second, slot.path);
    }
    if (!set.prompt()) continue;
    const AdapterSet*& holder = set.prompt()->is_prefix() ? prefix : prompt;
    require<ConfigError>(holder == nullptr,
                         "[adapters.set_active_adapters] one {} may be active at a time; found {:?} and {:?}; activate "
                         "one of them",
                         set.prompt()->is_prefix() ? "prefix" : "prompt of embeddings", holder == nullptr ? "" : holder->name(),
                         set.name());
    holder = &set;
  }
}

}  // namespace

void require_no_conflicts(const std::vector<AdapterSet>& sets) {
  require_separate_parameters(sets);
  require_layers_apart(sets);
  require_separate_rows(sets);
}

}  // namespace lora::adapters
