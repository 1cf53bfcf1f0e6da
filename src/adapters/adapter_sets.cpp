#include "lora/adapters/adapter_sets.h"

#include <algorithm>
#include <iterator>
#include <set>

#include "adapters/state.h"
#include "lora/adapters/adapter_io.h"
#include "lora/adapters/inject.h"
#include "lora/core/file.h"

namespace lora {
namespace {

template <class T>
void append(std::vector<T>& all, std::vector<T> more) {
  all.insert(all.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
}

}  // namespace

AdapterSets::AdapterSets(AdapterSet one) {
  if (one) sets_.push_back(std::move(one));
}

AdapterSets::AdapterSets(std::vector<AdapterSet> several) : sets_(std::move(several)) {}

std::vector<at::Tensor> AdapterSets::parameters() const {
  std::vector<at::Tensor> all;
  for (const auto& set : sets_) append(all, set.parameters());
  return all;
}

std::vector<std::pair<std::string, at::Tensor>> AdapterSets::named_parameters() const {
  std::vector<std::pair<std::string, at::Tensor>> all;
  for (const auto& set : sets_) append(all, set.named_parameters());
  return all;
}

at::Tensor AdapterSets::regularizer() const {
  at::Tensor sum;
  for (const auto& set : sets_) {
    const at::Tensor term = set.regularizer();
    if (term.defined()) sum = sum.defined() ? sum + term : term;
  }
  return sum;
}

void AdapterSets::after_step(int64_t step, bool has_gradients) {
  for (auto& set : sets_) set.after_step(step, has_gradients);
}

void AdapterSets::set_enabled(bool enabled) {
  for (auto& set : sets_) set.set_enabled(enabled);
}

void AdapterSets::merge() {
  std::vector<AdapterSet::Slot> slots;
  std::set<const nn::AdapterSlot*> seen;
  for (const auto& set : sets_) {
    adapters::require_mergeable(set);
    for (const auto& slot : set.slots()) {
      if (seen.insert(&adapters::slot_of(slot)).second) slots.push_back(slot);
    }
  }
  adapters::merge_all(slots);
}

std::optional<int64_t> AdapterSets::rank_budget(int64_t step) const {
  std::optional<int64_t> budget;
  for (const auto& set : sets_) {
    if (set.allocator()) budget = budget.value_or(0) + set.allocator()->budget(step);
  }
  return budget;
}

bool AdapterSets::allocates(int64_t step) const {
  return std::ranges::any_of(sets_, [step](const auto& set) { return set.allocator() && set.allocator()->allocates(step); });
}

std::vector<std::string> AdapterSets::rank_modules() const {
  std::vector<std::string> all;
  for (const auto& set : sets_) {
    if (set.allocator()) append(all, set.allocator()->paths());
  }
  return all;
}

std::vector<int64_t> AdapterSets::ranks() const {
  std::vector<int64_t> all;
  for (const auto& set : sets_) {
    if (set.allocator()) append(all, set.allocator()->ranks());
  }
  return all;
}

void activate_together(torch::nn::Module& model, const AdapterSets& sets) {
  std::vector<std::string> names;
  for (const auto& set : sets) names.push_back(set.name());
  set_active_adapters(model, names);
}

Path adapter_directory(const AdapterSets& sets, size_t index, const Path& directory) {
  return index == 0 ? directory : directory / sets.all()[index].name();
}

void save_adapters(const AdapterSets& sets, const Path& directory) {
  if (sets.size() == 1) return save_adapter(sets.all().front(), directory);
  AtomicDirectory complete(directory);
  for (size_t i = 0; i < sets.size(); ++i) save_adapter(sets.all()[i], adapter_directory(sets, i, complete.path()));
  complete.commit();
}

}  // namespace lora
