#include "lora/adapters/inject.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <charconv>
#include <iterator>
#include <limits>
#include <map>
#include <sstream>

#include "adapters/inject_as_stored.h"
#include "adapters/module_tree.h"
#include "adapters/refit.h"
#include "adapters/residual_start.h"
#include "adapters/state.h"
#include "adapters/targets.h"
#include "adapters/token_targets.h"
#include "core/check.h"
#include "core/overloaded.h"
#include "lora/adapters/dora.h"
#include "lora/core/log.h"
#include "lora/core/pattern.h"
#include "lora/nn/causal_lm.h"

namespace lora {
namespace {

using adapters::base_modules;
using adapters::base_parameters;
using adapters::NamedModule;
using adapters::registry_of;
using adapters::select_modules_to_save;
using adapters::select_targets;
using adapters::warn_unused_patterns;
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

void require_bias_word(const std::string& bias) {
  require<ConfigError>(bias == "none" || bias == "all" || bias == "lora_only",
                       "[adapters.inject] bias must be none, all or lora_only; found {:?}; use none", bias);
}

bool is_inside(const std::string& name, const std::string& path) {
  return name.starts_with(path) && name.size() > path.size() && name[path.size()] == '.';
}

bool is_inside_any(const std::string& name, const std::vector<NamedModule>& modules) {
  return std::ranges::any_of(modules, [&](const auto& named) { return is_inside(name, named.path); });
}

/// The first two names of a weight of which one is inside a chosen module.
std::optional<std::pair<std::string, std::string>> find_tie(const NamedParameters& parameters,
                                                            const std::vector<NamedModule>& chosen) {
  std::map<const void*, std::string> first_name;
  for (const auto& [name, tensor] : parameters) {
    const void* identity = tensor.has_storage() && tensor.data_ptr() != nullptr
                               ? tensor.data_ptr()
                               : static_cast<const void*>(tensor.unsafeGetTensorImpl());
    const auto [place, is_new] = first_name.emplace(identity, name);
    if (!is_new && (is_inside_any(name, chosen) || is_inside_any(place->second, chosen))) return std::pair(name, place->second);
  }
  return std::nullopt;
}

/// The base's parameters. A tied weight would change at both of its places: of a file, which says what it holds, as in PEFT the
/// head gets numbers of its own; otherwise that must be the user's choice, not a side effect.
NamedParameters untied_parameters(torch::nn::Module& model, const std::vector<NamedModule>& modules,
                                  const std::vector<NamedModule>& chosen, bool as_stored) {
  NamedParameters parameters = base_parameters(model, modules);
  auto tie = find_tie(parameters, chosen);
  auto* causal = dynamic_cast<nn::CausalLMImpl*>(&model);
  if (tie && as_stored && causal != nullptr) {
    causal->untie_head();
    parameters = base_parameters(model, modules);
    tie = find_tie(parameters, chosen);
  }
  if (!tie) return parameters;
  fail<ConfigError>(
      "[adapters.inject] a target or module to save must not share its weight with another; found {:?} tied to {:?}; leave both "
      "out, "
      "or untie the model's embeddings (in a run file: model.tie_word_embeddings: false)",
      tie->first, tie->second);
}

NamedParameters select_saved(const NamedParameters& parameters, const std::vector<NamedModule>& modules) {
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
                              const std::vector<NamedModule>& targets, const std::vector<NamedModule>& modules_to_save) {
  NamedParameters biases;
  if (which == "none") return biases;
  std::ranges::copy_if(parameters, std::back_inserter(biases), [&](const auto& entry) {
    const auto& name = entry.first;
    return matches_suffix(name, "bias") && (which == "all" || is_inside_any(name, targets)) &&
           !is_inside_any(name, modules_to_save);
  });
  if (biases.empty()) {
    log::warn(fmt::format("[adapters.inject] bias is {}, but the model has no such biases: none will train", which));
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
    copies.push_back({name, parameter, parameter.detach().to(dtype, /*non_blocking=*/false, /*copy=*/true)});
  }
  return copies;
}

/// One module to adapt, before its adapter is made.
struct PlannedSlot {
  AdapterSet::Slot slot;
  std::function<std::shared_ptr<nn::Adapter>()> make = nullptr;
  double elements = 0;  ///< in double, since ranks from outside may be anything
};

/// What is about to be attached; the model is as it was.
struct Plan {
  std::vector<PlannedSlot> slots;
  std::vector<AdapterSet::BlockSlot> blocks;  ///< whose adapters are made by
  std::function<std::shared_ptr<nn::BlockAdapter>(const AdapterSet::BlockSlot&)> make_block;
  std::function<std::shared_ptr<PromptEncoder>()> make_prompt;  ///< null: no virtual tokens
  nn::CausalLMImpl* prompted = nullptr;                         ///< the model that takes them
  double other_elements = 0;                                    ///< of blocks and virtual tokens
  NamedParameters saved, biases;                                ///< trained whole
  std::vector<NamedModule> modules_to_save;
};

AdapterSet::Slot slot_at(const NamedModule& target, const std::string& name) {
  require<ConfigError>(!target.module->named_children().contains(name),
                       "[adapters.inject] adapter names must be unique; found {:?} on {} already; choose another", name,
                       target.path);
  AdapterSet::Slot slot{.path = target.path};
  if (auto linear = std::dynamic_pointer_cast<nn::LinearImpl>(target.module)) {
    slot.linear = nn::Linear(std::move(linear));
  } else {
    slot.embedding = nn::Embedding(std::dynamic_pointer_cast<nn::EmbeddingImpl>(target.module));
  }
  return slot;
}

std::shared_ptr<nn::Adapter> make_lora(const AdapterSet::Slot& slot, const LoraSize& size, const LoraOptions& options) {
  const auto [rank, alpha, scale] = size;
  if (slot.linear.is_empty()) {
    if (!options.dora) return std::make_shared<LoraEmbedding>(slot.embedding->options, rank, alpha, options);
    auto adapter = std::make_shared<DoraEmbedding>(*slot.embedding, rank, alpha, options);
    adapter->reset_magnitude(slot.embedding->weight);
    return adapter;
  }
  nn::LinearImpl& layer = *nn::Linear(slot.linear);
  std::shared_ptr<DoraLinear> dora;
  if (options.dora) dora = std::make_shared<DoraLinear>(layer, rank, alpha, options);
  const auto adapter =
      dora ? std::shared_ptr<LoraLinear>(dora) : std::make_shared<LoraLinear>(layer.layout(), rank, alpha, options);
  if (adapters::starts_from_weight(options.init) && !layer.weight.is_meta()) {
    const auto [a_RI, b_OR] = adapters::start_factors(options.init, layer.weight_value(), rank, scale);
    adapter->start_from(a_RI.cpu(), b_OR.cpu());
  }
  if (dora) dora->reset_magnitude(layer);
  return adapter;
}

/// The part of a plan that all methods on weights share. make_slot(target, slot): how each is made.
template <class Options, class MakeSlot>
Plan plan_weights(torch::nn::Module& model, Options& options, const std::string& bias, bool as_stored, MakeSlot make_slot) {
  Plan plan;
  const auto modules = base_modules(model);
  plan.modules_to_save = select_modules_to_save(modules, options.modules_to_save, as_stored);
  TargetRule rule = adapters::rule_of(options);
  const auto targets = select_targets(model, modules, rule);
  options.targets = rule.targets;
  auto chosen = targets;
  chosen.insert(chosen.end(), plan.modules_to_save.begin(), plan.modules_to_save.end());
  const auto parameters = untied_parameters(model, modules, chosen, as_stored);
  plan.slots = make_slot(targets);
  plan.saved = select_saved(parameters, plan.modules_to_save);
  plan.biases = select_biases(parameters, bias, targets, plan.modules_to_save);
  return plan;
}

/// Two slots for a table whose head follows it, one for another.
void plan_token_rows(Plan& plan, const adapters::TokenTarget& target, const std::string& name, bool init_weights) {
  PlannedSlot planned{.slot = slot_at(target.module, name)};
  const auto& table = adapters::weight_form_of(planned.slot);
  planned.elements = static_cast<double>(target.ids.size()) * static_cast<double>(table.size(1));
  const auto made = std::make_shared<std::shared_ptr<TrainableTokens>>();
  planned.make = [slot = planned.slot, ids = target.ids, made, init_weights] {
    const auto& form = adapters::weight_form_of(slot);
    return *made = std::make_shared<TrainableTokens>(form.is_meta() ? form : adapters::weight_value_of(slot), ids, init_weights);
  };
  plan.slots.push_back(std::move(planned));
  if (!target.tied) return;
  PlannedSlot follower{.slot = slot_at(*target.tied, name)};
  follower.make = [made] { return std::make_shared<TiedTrainableTokens>(*made); };
  plan.slots.push_back(std::move(follower));
}

/// A table's rows cannot both be replaced and be changed in another way.
void require_rows_alone(const Plan& plan, const NamedModule& table) {
  const bool is_target = std::ranges::any_of(plan.slots, [&](const auto& planned) { return planned.slot.path == table.path; });
  const bool is_saved = std::ranges::any_of(
      plan.modules_to_save, [&](const auto& saved) { return saved.path == table.path || is_inside(table.path, saved.path); });
  require<ConfigError>(!is_target && !is_saved,
                       "[adapters.inject] a module of trainable_token_indices must not be in {} as well; found {:?} "
                       "in both; remove one",
                       is_target ? "target_modules" : "modules_to_save", table.path);
}

/// Adds the rows that train beside the updates of LoRA and AdaLoRA.
template <class Options>
Plan with_token_rows(Plan plan, torch::nn::Module& model, const Options& options, const std::string& name) {
  if (!options.token_indices) return plan;
  const auto targets = adapters::select_token_targets(model, base_modules(model), *options.token_indices);
  for (const auto& target : targets) {
    require_rows_alone(plan, target.module);
    if (target.tied) require_rows_alone(plan, *target.tied);
  }
  for (const auto& target : targets) plan_token_rows(plan, target, name, /*init_weights=*/true);
  return plan;
}

Plan plan_for(LoraOptions& options, torch::nn::Module& model, const std::string& name, bool as_stored) {
  require_bias_word(options.bias);
  Plan plan = plan_weights(model, options, options.bias, as_stored, [&](const std::vector<NamedModule>& targets) {
    warn_unused_patterns(options.rank_pattern, "rank_pattern", targets);
    warn_unused_patterns(options.alpha_pattern, "alpha_pattern", targets);
    std::vector<PlannedSlot> slots;
    for (const auto& target : targets) {
      const LoraSize size = lora_size(options, target.path);
      PlannedSlot planned{.slot = slot_at(target, name)};
      const auto& weight = adapters::weight_form_of(planned.slot);
      planned.elements = static_cast<double>(size.rank) * static_cast<double>(weight.size(0) + weight.size(1));
      planned.make = [slot = planned.slot, size, &options] { return make_lora(slot, size, options); };
      slots.push_back(std::move(planned));
    }
    return slots;
  });
  return with_token_rows(std::move(plan), model, options, name);
}

void require_linear(const AdapterSet::Slot& slot, const char* method) {
  require<ConfigError>(!slot.linear.is_empty(),
                       "[adapters.inject] {} must be given linear layers; found an embedding at {:?}; leave "
                       "it out of target_modules",
                       method, slot.path);
}

/// Ranks that a finished training kept at a module, or all of them.
int64_t rank_at(const AdaLoraOptions& options, const std::string& path) {
  if (!options.rank_pattern) return options.init_rank;
  const auto kept = options.rank_pattern->find(path + ".lora_E");
  require<ConfigError>(kept != options.rank_pattern->end(),
                       "[adapters.inject] rank_pattern must have an entry for every module; found "
                       "none for {:?}",
                       path + ".lora_E");
  require<ConfigError>(static_cast<int64_t>(kept->second.size()) == options.init_rank,
                       "[adapters.inject] rank_pattern must have init_r = {} entries for every module; found {} for {:?}",
                       options.init_rank, kept->second.size(), path);
  return std::count(kept->second.begin(), kept->second.end(), true);
}

Plan plan_for(AdaLoraOptions& options, torch::nn::Module& model, const std::string& name, bool as_stored) {
  require_bias_word(options.bias);
  check_adalora(options, /*for_training=*/!as_stored && !options.rank_pattern);
  Plan plan = plan_weights(model, options, options.bias, as_stored, [&](const std::vector<NamedModule>& targets) {
    const double weight = options.orth_reg_weight / (2 * static_cast<double>(targets.size()));
    std::vector<PlannedSlot> slots;
    for (const auto& target : targets) {
      PlannedSlot planned{.slot = slot_at(target, name)};
      require_linear(planned.slot, "AdaLoRA");
      const int64_t rank = rank_at(options, target.path);
      const auto layout = planned.slot.linear->layout();
      planned.elements = static_cast<double>(rank) * static_cast<double>(layout.in_features + layout.out_features + 1);
      planned.make = [layout, rank, weight, &options] { return std::make_shared<AdaLoraLinear>(layout, rank, options, weight); };
      slots.push_back(std::move(planned));
    }
    return slots;
  });
  return with_token_rows(std::move(plan), model, options, name);
}

Plan plan_for(Ia3Options& options, torch::nn::Module& model, const std::string& name, bool as_stored) {
  const TargetMatcher feedforward({.targets = options.feedforward});
  return plan_weights(model, options, "none", as_stored, [&](const std::vector<NamedModule>& targets) {
    std::vector<PlannedSlot> slots;
    for (const auto& target : targets) {
      PlannedSlot planned{.slot = slot_at(target, name)};
      require_linear(planned.slot, "(IA)^3");
      const auto layout = planned.slot.linear->layout();
      const bool scales_input = feedforward.matches(target.path);
      planned.elements = static_cast<double>(scales_input ? layout.in_features : layout.out_features);
      planned.make = [layout, scales_input, &options] {
        return std::make_shared<Ia3Linear>(layout, scales_input, options.init_ones);
      };
      slots.push_back(std::move(planned));
    }
    return slots;
  });
}

Plan plan_for(TrainableTokensOptions& options, torch::nn::Module& model, const std::string& name, bool /*as_stored*/) {
  Plan plan;
  const auto modules = base_modules(model);
  if (!options.targets) options.targets = adapters::input_embedding(model, modules).path;
  TargetRule rule{.targets = *options.targets};
  require<ConfigError>(!rule.is_all_linear(),
                       "[adapters.inject] trainable tokens are rows of embeddings; found target_modules all-linear; "
                       "leave target_modules out");
  const auto targets = adapters::token_targets_at(select_targets(model, modules, rule), options.token_indices, modules);
  for (const auto& target : targets) plan_token_rows(plan, target, name, options.init_weights);
  return plan;
}

/// The shape that virtual tokens must have; notes the model that takes them.
nn::PromptShape require_prompted(torch::nn::Module& model, Plan& plan) {
  plan.prompted = dynamic_cast<nn::CausalLMImpl*>(&model);
  const auto shape = plan.prompted != nullptr ? plan.prompted->prompt_shape() : std::nullopt;
  require<ConfigError>(shape.has_value(),
                       "[adapters.inject] virtual tokens need a causal language model that takes them; found {}; use "
                       "a model with prompt_shape(), or another method",
                       model.name());
  return *shape;
}

Plan plan_for(PrefixOptions& options, torch::nn::Module& model, const std::string& /*name*/, bool as_stored) {
  Plan plan;
  const auto shape = require_prompted(model, plan);
  const int64_t width = shape.kv_heads * shape.head_dim;
  if (options.encoder_hidden_size == 0) options.encoder_hidden_size = width;
  plan.other_elements = 2.0 * static_cast<double>(options.num_virtual_tokens) * static_cast<double>(shape.layers * width);
  plan.make_prompt = [&options, shape, as_stored] { return make_prefix(options, shape, as_stored); };
  return plan;
}

Plan plan_for(PromptOptions& options, torch::nn::Module& model, const std::string& /*name*/, bool as_stored) {
  Plan plan;
  const auto shape = require_prompted(model, plan);
  plan.other_elements = static_cast<double>(options.num_virtual_tokens) * static_cast<double>(shape.hidden);
  plan.make_prompt = [made = options, shape, as_stored, prompted = plan.prompted]() mutable {
    if (as_stored) made.init = "RANDOM";
    return make_prompt(made, shape, made.init == "RANDOM" ? at::Tensor() : prompted->input_embeddings());
  };
  return plan;
}

Plan plan_for(PTuningOptions& options, torch::nn::Module& model, const std::string& /*name*/, bool as_stored) {
  Plan plan;
  const auto shape = require_prompted(model, plan);
  if (options.encoder_hidden_size == 0) options.encoder_hidden_size = shape.hidden;
  plan.other_elements = static_cast<double>(options.num_virtual_tokens) * static_cast<double>(shape.hidden);
  plan.make_prompt = [&options, shape, as_stored] { return make_ptuning(options, shape, as_stored); };
  return plan;
}

/// The first number in a path: which layer it is in.
std::optional<int64_t> layer_of(const std::string& path) {
  std::stringstream parts(path);
  for (std::string part; std::getline(parts, part, '.');) {
    int64_t number = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), number);
    if (error == std::errc() && end == part.data() + part.size()) return number;
  }
  return std::nullopt;
}

Plan plan_for(BottleneckOptions& options, torch::nn::Module& model, const std::string& name, bool /*as_stored*/) {
  Plan plan;
  require<ConfigError>(options.mh_adapter || options.output_adapter,
                       "[adapters.bottleneck] mh_adapter or output_adapter must be true; found neither");
  for (const auto& [path, module] : base_modules(model)) {
    const auto block = std::dynamic_pointer_cast<nn::BlockOutputImpl>(module);
    if (!block) continue;
    const bool wanted = adapters::last_part(path) == "attention_adapters" ? options.mh_adapter : options.output_adapter;
    const auto layer = layer_of(path);
    const bool left_out = layer && std::ranges::find(options.leave_out, *layer) != options.leave_out.end();
    if (!wanted || left_out) continue;
    require<ConfigError>(!block->slot.find(name), "[adapters.inject] adapter names must be unique; found {:?} on {} already",
                         name, path);
    plan.blocks.push_back(AdapterSet::BlockSlot{.path = path, .block = nn::BlockOutput(block), .adapter = nullptr});
    plan.other_elements +=
        2 * static_cast<double>(block->hidden()) * static_cast<double>(block->hidden()) / options.reduction_factor;
  }
  plan.make_block = [&options](const AdapterSet::BlockSlot& slot) {
    return std::make_shared<BottleneckAdapter>(slot.block->hidden(), options);
  };
  require<ConfigError>(!plan.blocks.empty(),
                       "[adapters.inject] the model must have block outputs (nn::BlockOutput) for bottleneck "
                       "adapters; found none that the options name; use another model or method");
  return plan;
}

double num_elements(const Plan& plan) {
  double sum = 0;
  for (const auto& planned : plan.slots) sum += planned.elements;
  for (const auto& entry : plan.saved) sum += static_cast<double>(entry.second.numel());
  return sum + plan.other_elements;
}

AdapterSet::Slot make_slot(const PlannedSlot& planned) {
  AdapterSet::Slot slot = planned.slot;
  slot.adapter = planned.make();
  const bool training = slot.linear.is_empty() ? slot.embedding->is_training() : slot.linear->is_training();
  // Beside a model of shapes alone the factors, which are small, stay real.
  const at::Device device = adapters::weight_form_of(slot).device();
  if (!device.is_meta()) slot.adapter->to(device);
  slot.adapter->train(training);
  return slot;
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
      claim(adapters::weight_form_of(slot).unsafeGetTensorImpl(), slot.path, {&set, token_rows(*slot.adapter)});
    }
    for (const auto& saved : set.saved_parameters()) claim(saved.parameter.unsafeGetTensorImpl(), saved.name, {&set, nullptr});
  }
}

/// (IA)^3 scales a layer's whole output: what it means beside another method's update would depend on their order.
void require_no_conflict(const std::vector<AdapterSet>& sets) {
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
AdapterSet carry_out(Plan plan, std::shared_ptr<AdapterSet::State> state, torch::nn::Module& model) {
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
  Plan plan = std::visit([&](auto& method) { return plan_for(method, model, name, as_stored); }, state->options);
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
    made.push_back(make_slot({.slot = slot, .make = [&] { return make_lora(slot, lora_size(options, slot.path), options); }}));
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
  require_separate_parameters(wanted);
  require_no_conflict(wanted);
  require_separate_rows(wanted);

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
