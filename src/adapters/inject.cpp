#include "lora/adapters/inject.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <map>

#include "adapters/attachment_plan.h"
#include "adapters/conflicts.h"
#include "adapters/inject_as_stored.h"
#include "adapters/module_tree.h"
#include "adapters/refit.h"
#include "adapters/state.h"
#include "adapters/token_targets.h"
#include "core/check.h"
#include "lora/nn/causal_lm.h"

namespace lora {
namespace {

using adapters::AttachmentPlan;
using adapters::base_modules;
using adapters::make_slot;
using adapters::NamedModule;
using adapters::NamedParameters;
using adapters::registry_of;

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
  const auto found = std::ranges::find_if(sets, [&](const auto& set) { return set.name() == name; });
  require<ConfigError>(found != sets.end(), "[adapters] the model must have an adapter {:?}; found [{}]; name one of them", name,
                       fmt::join(names_of(sets), ", "));
  return *found;
}

void require_usable_name(torch::nn::Module& model, const std::string& name) {
  require<ConfigError>(!name.empty() && name.find('.') == std::string::npos,
                       "[adapters.inject] an adapter's name must be a word without dots; found {:?}; choose another", name);
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

/// Trained values start as copies of the base's, in fp32 whatever that is in; they stay outside the
/// model until the adapter is active. The model must hold the base values now, not another
/// adapter's.
std::vector<AdapterSet::SavedParameter> trained_copies(const NamedParameters& parameters) {
  std::vector<AdapterSet::SavedParameter> copies;
  for (const auto& [name, parameter] : parameters) {
    const auto dtype = parameter.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    copies.push_back({name, parameter, parameter.detach().to(dtype, /*non_blocking=*/false, /*copy=*/true)});
  }
  return copies;
}

/// Where the model computes.
at::Device device_of(const torch::nn::Module& model) {
  const auto parameters = model.parameters();
  return parameters.empty() || parameters.front().is_meta() ? at::Device(at::kCPU) : parameters.front().device();
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

/// Of the tables whose rows train, those that two modules have.
std::vector<const at::TensorImpl*> shared_token_weights(const std::vector<AdapterSet::Slot>& slots,
                                                        const std::vector<NamedModule>& modules) {
  std::vector<const at::TensorImpl*> shared;
  for (const auto& slot : slots) {
    if (token_rows(*slot.adapter) == nullptr) continue;
    const auto found = std::ranges::find_if(modules, [&](const auto& named) { return named.path == slot.path; });
    if (found != modules.end() && adapters::sharer_of_weight(*found, modules))
      shared.push_back(adapters::weight_form_of(slot).unsafeGetTensorImpl());
  }
  return shared;
}

/// The model's embeddings and its head.
std::vector<AdapterSet::Slot> tables_of(torch::nn::Module& model, const std::vector<NamedModule>& modules) {
  auto* causal = dynamic_cast<nn::CausalLMImpl*>(&model);
  const auto head = causal != nullptr ? causal->head().ptr() : nullptr;
  std::vector<AdapterSet::Slot> tables;
  for (const auto& named : modules) {
    if (auto embedding = std::dynamic_pointer_cast<nn::EmbeddingImpl>(named.module)) {
      tables.push_back({.path = named.path, .embedding = nn::Embedding(std::move(embedding))});
    } else if (head != nullptr && named.module == head) {
      tables.push_back({.path = named.path, .linear = nn::Linear(head)});
    }
  }
  return tables;
}

/// Makes the plan's adapters and attaches them.
AdapterSet carry_out(AttachmentPlan plan, std::shared_ptr<AdapterSet::State> state, torch::nn::Module& model) {
  const std::string name = state->name;
  if (const auto* causal = dynamic_cast<const nn::CausalLMImpl*>(&model)) {
    state->model_type = causal->model_type();
    state->model_class = causal->model_class();
  }
  for (const auto& planned : plan.slots) state->slots.push_back(make_slot(planned));
  const auto modules = base_modules(model);
  state->shared_weights = shared_token_weights(state->slots, modules);
  state->tables = tables_of(model, modules);
  state->blocks = plan.blocks;
  if (plan.make_prompt) state->prompt = plan.make_prompt();
  for (auto& block : state->blocks) {
    block.adapter = plan.make_block(block);
    block.adapter->to(device_of(model));
    block.adapter->train(block.block->is_training());
  }
  if (state->prompt) {
    state->prompt->to(device_of(model));
    state->prompt->train(model.is_training());
  }

  // All checks are done; only from here on does the model change.
  set_active_adapters(model, {});
  for (const auto& module : plan.modules_to_save) nn::restore_weights(*module.module);
  state->saved = trained_copies(plan.saved);
  state->biases = trained_copies(plan.biases);
  for (const auto& slot : state->slots) attach(slot, name);
  for (const auto& block : state->blocks) block.block.ptr()->attach(name, block.adapter);
  if (state->prompt) {
    plan.prompted->attach_prompt(name, state->prompt);
    state->prompt_slot = plan.prompted->prompts();
    state->prompt_shape = *plan.prompted->prompt_shape();
  }
  const AdapterSet set(std::move(state));
  registry_of(model).sets.push_back(set);
  set_active_adapters(model, {name});
  return set;
}

AdapterSet inject_any(torch::nn::Module& model, const MethodOptions& options, const std::string& name, double max_elements,
                      bool as_stored) {
  require_usable_name(model, name);
  auto state = std::make_shared<AdapterSet::State>();
  state->name = name;
  state->options = options;
  AttachmentPlan plan = adapters::plan_attachment(state->options, model, name, as_stored);
  const double wanted = num_elements(plan);
  require<ShapeError>(wanted <= max_elements,
                      "[adapters.load] the file must hold the adapter that its config describes; found that r, "
                      "rank_pattern and modules_to_save ask for {:.0f} numbers, far more than the file has; "
                      "correct "
                      "adapter_config.json",
                      wanted);
  const AdapterSet set = carry_out(std::move(plan), std::move(state), model);
  if (!as_stored) allocate_ranks(set);
  return set;
}

}  // namespace

void allocate_ranks(const AdapterSet& adapters) {
  const auto* options = std::get_if<AdaLoraOptions>(&adapters.options());
  if (options == nullptr || options->rank_pattern) return;
  check_adalora(*options, /*for_training=*/true);
  RankAllocator::Modules modules;
  for (const auto& slot : adapters.slots()) {
    if (auto linear = std::dynamic_pointer_cast<AdaLoraLinear>(slot.adapter)) modules.emplace_back(slot.path, std::move(linear));
  }
  adapters.state().allocator = std::make_shared<RankAllocator>(*options, std::move(modules));
}

void adapters::refit_lora(torch::nn::Module& model, const AdapterSet& set, const LoraOptions& options,
                          const std::function<bool(const std::string&)>& keeps) {
  auto& state = set.state();
  std::vector<AdapterSet::Slot> made;
  for (const auto& slot : state.slots) {
    if (!keeps(slot.path)) continue;
    made.push_back(
        make_slot({.slot = slot, .make = [&] { return adapters::make_lora(slot, lora_size(options, slot.path), options); }}));
  }
  const auto active = active_adapters(model);
  for (const auto& slot : state.slots) detach(slot, state.name);
  for (const auto& slot : made) attach(slot, state.name);
  state.slots = std::move(made);
  state.options = options;
  set_active_adapters(model, active);
}

AdapterSet inject_method(torch::nn::Module& model, const MethodOptions& options, const std::string& name) {
  return inject_any(model, options, name, std::numeric_limits<double>::infinity(), /*as_stored=*/false);
}

AdapterSet adapters::inject_as_stored(torch::nn::Module& model, const MethodOptions& options, const std::string& name,
                                      double max_elements) {
  require_usable_name(model, name);
  try {
    return inject_any(model, options, name, max_elements, /*as_stored=*/true);
  } catch (const ConfigError& error) {
    throw FormatError(error.what());  // what a file asks for is no choice of the user's
  }
}

void set_active_adapters(torch::nn::Module& model, const std::vector<std::string>& names) {
  std::vector<AdapterSet> wanted;
  for (const auto& name : names) wanted.push_back(require_adapter(model, name));
  adapters::require_no_conflicts(wanted);

  const auto all = adapters_of(model);
  for (const auto& set : all) {
    set.state().active_position.reset();
    set.state().set_requires_grad(false);
    for (const auto& slot : set.slots()) {
      adapters::unmerge(slot);
      adapters::slot_of(slot).set_enabled(true);
      adapters::slot_of(slot).set_active(names);
    }
    for (const auto& block : set.blocks()) {
      block.block.ptr()->slot.set_enabled(true);
      block.block.ptr()->slot.set_active(names);
    }
    if (const auto& prompts = set.state().prompt_slot) {
      prompts->set_enabled(true);
      prompts->set_active(names);
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
  for (const auto& slot : removed.slots()) {
    adapters::unmerge(slot);
    detach(slot, name);
  }
  for (const auto& block : removed.blocks()) block.block.ptr()->detach(name);
  if (const auto& prompts = removed.state().prompt_slot) prompts->detach(name);
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
