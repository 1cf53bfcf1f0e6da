#include "lora/adapters/inject.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <iterator>
#include <limits>
#include <map>

#include "adapters/inject_within.h"
#include "adapters/module_tree.h"
#include "adapters/state.h"
#include "adapters/targets.h"
#include "core/check.h"
#include "lora/core/log.h"
#include "lora/core/pattern.h"

namespace lora {
namespace {

using adapters::NamedModule;
using NamedParameters = std::vector<std::pair<std::string, at::Tensor>>;

std::vector<std::string> names_of(const std::vector<AdapterSet>& sets) {
  std::vector<std::string> names;
  for (const auto& set : sets) names.push_back(set.name());
  return names;
}

bool has_adapter(torch::nn::Module& model, const std::string& name) {
  const auto names = names_of(adapters_of(model));
  return std::ranges::find(names, name) != names.end();
}

AdapterSet require_adapter(torch::nn::Module& model, const std::string& name) {
  const auto sets = adapters_of(model);
  const auto found =
      std::ranges::find_if(sets, [&](const auto& set) { return set.name() == name; });
  require<ConfigError>(
      found != sets.end(),
      "[adapters] the model must have an adapter {:?}; found [{}]; name one of them", name,
      fmt::join(names_of(sets), ", "));
  return *found;
}

void require_usable_name(torch::nn::Module& model, const std::string& name) {
  require<ConfigError>(
      !name.empty() && name.find('.') == std::string::npos,
      "[adapters.inject] an adapter's name must be a word without dots; found {:?}; choose another",
      name);
  require<ConfigError>(name.find("lora") == std::string::npos,
                       "[adapters.inject] an adapter's name must not contain \"lora\", which marks "
                       "tensors in files; found "
                       "{:?}; choose another",
                       name);
  require<ConfigError>(!has_adapter(model, name),
                       "[adapters.inject] adapter names must be unique; found {:?} in the model "
                       "already; choose another or "
                       "remove the first",
                       name);
}

void require_bias_word(const std::string& bias) {
  require<ConfigError>(
      bias == "none" || bias == "all" || bias == "lora_only",
      "[adapters.inject] bias must be none, all or lora_only; found {:?}; use none", bias);
}

bool is_inside(const std::string& name, const std::string& path) {
  return name.starts_with(path) && name.size() > path.size() && name[path.size()] == '.';
}

bool is_inside_any(const std::string& name, const std::vector<NamedModule>& modules) {
  return std::ranges::any_of(modules,
                             [&](const auto& named) { return is_inside(name, named.path); });
}

/// A tied weight would change at both of its places: the choice must be the user's, not a side
/// effect.
void require_untied(const NamedParameters& parameters, const std::vector<NamedModule>& chosen) {
  std::map<const void*, std::string> first_name;
  for (const auto& [name, tensor] : parameters) {
    const void* identity = tensor.has_storage() && tensor.data_ptr() != nullptr
                               ? tensor.data_ptr()
                               : static_cast<const void*>(tensor.unsafeGetTensorImpl());
    const auto [place, is_new] = first_name.emplace(identity, name);
    if (is_new || (!is_inside_any(name, chosen) && !is_inside_any(place->second, chosen))) continue;
    fail<ConfigError>(
        "[adapters.inject] a target or module to save must not share its weight with another; "
        "found {:?} tied to {:?}; "
        "leave both out, or untie the model's embeddings",
        name, place->second);
  }
}

NamedParameters select_saved(const NamedParameters& parameters,
                             const std::vector<NamedModule>& modules) {
  NamedParameters saved;
  std::ranges::copy_if(parameters, std::back_inserter(saved), [&](const auto& entry) {
    return entry.second.is_floating_point() && is_inside_any(entry.first, modules);
  });
  require<ConfigError>(modules.empty() || !saved.empty(),
                       "[adapters.inject] modules_to_save must hold parameters; found none in {}; "
                       "name other modules",
                       modules.empty() ? "" : modules.front().path);
  return saved;
}

NamedParameters select_biases(const NamedParameters& parameters, const std::string& which,
                              const std::vector<NamedModule>& targets,
                              const std::vector<NamedModule>& modules_to_save) {
  NamedParameters biases;
  if (which == "none") return biases;
  std::ranges::copy_if(parameters, std::back_inserter(biases), [&](const auto& entry) {
    const auto& name = entry.first;
    return matches_suffix(name, "bias") && (which == "all" || is_inside_any(name, targets)) &&
           !is_inside_any(name, modules_to_save);
  });
  if (biases.empty()) {
    log::warn(fmt::format(
        "[adapters.inject] bias is {}, but the model has no such biases: none will train", which));
  }
  return biases;
}

/// Trained values start as copies of the base's, in fp32 whatever that is in; they stay outside the
/// model until the adapter is active. The model must hold the base values now, not another
/// adapter's.
std::vector<AdapterSet::SavedParameter> trained_copies(const NamedParameters& parameters) {
  std::vector<AdapterSet::SavedParameter> copies;
  for (const auto& [name, parameter] : parameters) {
    const auto dtype = parameter.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    copies.push_back(
        {name, parameter, parameter.detach().to(dtype, /*non_blocking=*/false, /*copy=*/true)});
  }
  return copies;
}

/// One module to adapt, before its adapter is made.
struct PlannedSlot {
  AdapterSet::Slot slot;
  LoraSize size;
};

std::vector<PlannedSlot> plan_slots(const std::vector<NamedModule>& targets,
                                    const LoraOptions& options, const std::string& name) {
  std::vector<PlannedSlot> planned;
  for (const auto& [path, module] : targets) {
    require<ConfigError>(
        !module->named_children().contains(name),
        "[adapters.inject] adapter names must be unique; found {:?} on {} already; choose another",
        name, path);
    PlannedSlot plan{.slot = {.path = path}, .size = lora_size(options, path)};
    if (auto linear = std::dynamic_pointer_cast<nn::LinearImpl>(module)) {
      plan.slot.linear = nn::Linear(std::move(linear));
    } else {
      plan.slot.embedding = nn::Embedding(std::dynamic_pointer_cast<nn::EmbeddingImpl>(module));
    }
    planned.push_back(std::move(plan));
  }
  return planned;
}

/// Numbers that the adapter will hold; in double, since ranks from outside may be anything.
double num_elements(const std::vector<PlannedSlot>& planned, const NamedParameters& whole) {
  double sum = 0;
  for (const auto& [slot, size] : planned) {
    const auto& weight = adapters::weight_form_of(slot);
    sum += static_cast<double>(size.rank) * static_cast<double>(weight.size(0) + weight.size(1));
  }
  for (const auto& entry : whole) sum += static_cast<double>(entry.second.numel());
  return sum;
}

AdapterSet::Slot make_slot(PlannedSlot plan, const LoraOptions& options) {
  auto& slot = plan.slot;
  bool training = false;
  if (slot.linear.is_empty()) {
    slot.adapter =
        std::make_shared<LoraEmbedding>(slot.embedding->options, plan.size.rank, plan.size.alpha, options);
    training = slot.embedding->is_training();
  } else {
    slot.adapter =
        std::make_shared<LoraLinear>(slot.linear->layout(), plan.size.rank, plan.size.alpha, options);
    training = slot.linear->is_training();
  }
  // Beside a model of shapes alone the factors, which are small, stay real.
  const at::Device device = adapters::weight_form_of(slot).device();
  if (!device.is_meta()) slot.adapter->to(device);
  slot.adapter->train(training);
  return slot;
}

void attach(const AdapterSet::Slot& slot, const std::string& name) {
  if (slot.linear.is_empty()) {
    slot.embedding.ptr()->attach(name, slot.adapter);
  } else {
    slot.linear.ptr()->attach(name, slot.adapter);
  }
}

void detach(const AdapterSet::Slot& slot, const std::string& name) {
  if (slot.linear.is_empty()) {
    slot.embedding.ptr()->detach(name);
  } else {
    slot.linear.ptr()->detach(name);
  }
}

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

}  // namespace

AdapterSet inject(torch::nn::Module& model, const LoraOptions& options, const std::string& name) {
  return adapters::inject_within(model, options, name, std::numeric_limits<double>::infinity());
}

AdapterSet adapters::inject_within(torch::nn::Module& model, const LoraOptions& options,
                                   const std::string& name, double max_elements) {
  require_usable_name(model, name);
  require_bias_word(options.bias);
  auto state = std::make_shared<AdapterSet::State>();
  state->name = name;
  state->options = options;

  const auto modules = base_modules(model);
  const auto modules_to_save = select_modules_to_save(modules, options.modules_to_save);
  const auto targets = select_targets(model, modules, state->options);
  warn_unused_patterns(options.rank_pattern, "rank_pattern", targets);
  warn_unused_patterns(options.alpha_pattern, "alpha_pattern", targets);

  const auto parameters = base_parameters(model, modules);
  require_untied(parameters, targets);
  require_untied(parameters, modules_to_save);
  auto planned = plan_slots(targets, options, name);
  const auto saved = select_saved(parameters, modules_to_save);
  const auto biases = select_biases(parameters, options.bias, targets, modules_to_save);
  const double wanted = num_elements(planned, saved);
  require<ShapeError>(
      wanted <= max_elements,
      "[adapters.load] the file must hold the adapter that its config describes; found that r, "
      "rank_pattern and modules_to_save ask for {:.0f} numbers, far more than the file has; "
      "correct "
      "adapter_config.json",
      wanted);
  for (auto& plan : planned) state->slots.push_back(make_slot(std::move(plan), options));

  // All checks are done; only from here on does the model change.
  set_active_adapters(model, {});
  for (const auto& module : modules_to_save) nn::restore_weights(*module.module);
  state->saved = trained_copies(saved);
  state->biases = trained_copies(biases);
  for (const auto& slot : state->slots) attach(slot, name);
  const AdapterSet set(std::move(state));
  registry_of(model).sets.push_back(set);
  set_active_adapters(model, {name});
  return set;
}

void set_active_adapters(torch::nn::Module& model, const std::vector<std::string>& names) {
  std::vector<AdapterSet> wanted;
  for (const auto& name : names) wanted.push_back(require_adapter(model, name));
  require_separate_parameters(wanted);

  const auto all = adapters_of(model);
  for (const auto& set : all) {
    set.state().active_position.reset();
    set.state().set_requires_grad(false);
    for (const auto& slot : set.slots()) {
      adapters::unmerge(slot);
      adapters::slot_of(slot).set_enabled(true);
      adapters::slot_of(slot).set_active(names);
    }
  }
  for (size_t i = 0; i < wanted.size(); ++i) wanted[i].state().active_position = i;
  // Base values first: an adapter that leaves may train a parameter that one that comes trains too.
  for (const auto& set : all) {
    if (!set.is_active()) set.state().put_trained_values(false);
  }
  for (const auto& set : wanted) {
    set.state().put_trained_values(true);
    set.state().set_requires_grad(true);
  }
}

std::vector<std::string> active_adapters(torch::nn::Module& model) {
  std::map<size_t, std::string> by_position;
  for (const auto& set : adapters_of(model)) {
    if (set.is_active()) by_position.emplace(*set.state().active_position, set.name());
  }
  std::vector<std::string> names;
  for (auto& [position, name] : by_position) names.push_back(std::move(name));
  return names;
}

std::vector<AdapterSet> adapters_of(torch::nn::Module& model) {
  std::vector<AdapterSet> sets;
  for (const auto& registry : adapters::registries_in(model)) {
    sets.insert(sets.end(), registry->sets.begin(), registry->sets.end());
  }
  return sets;
}

void remove_adapter(torch::nn::Module& model, const std::string& name) {
  const auto removed = require_adapter(model, name);
  auto active = active_adapters(model);
  removed.state().active_position.reset();
  removed.state().put_trained_values(false);
  removed.state().set_requires_grad(false);
  for (const auto& slot : removed.slots()) detach(slot, name);
  for (const auto& registry : adapters::registries_in(model)) {
    std::erase_if(registry->sets, [&](const auto& set) { return set.name() == name; });
  }

  std::erase(active, name);
  const auto remaining = adapters_of(model);
  if (active.empty() && !remaining.empty()) active = {remaining.front().name()};
  set_active_adapters(model, active);
}

std::vector<std::string> adaptable_modules(torch::nn::Module& model) {
  std::vector<std::string> paths;
  for (const auto& [path, module] : adapters::base_modules(model)) {
    if (adapters::is_adaptable(*module)) paths.push_back(path);
  }
  return paths;
}

}  // namespace lora
