#include "adapters/attachment_plan.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <charconv>
#include <iterator>
#include <map>
#include <sstream>
#include <variant>

#include "adapters/residual_start.h"
#include "adapters/state.h"
#include "adapters/targets.h"
#include "adapters/token_targets.h"
#include "core/check.h"
#include "lora/adapters/dora.h"
#include "lora/core/log.h"
#include "lora/core/pattern.h"

namespace lora::adapters {
namespace {

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

/// The part of a plan that all methods on weights share. make_slot(target, slot): how each is made.
template <class Options, class MakeSlot>
AttachmentPlan plan_weights(torch::nn::Module& model, Options& options, const std::string& bias, bool as_stored,
                            MakeSlot make_slot) {
  AttachmentPlan plan;
  const auto modules = base_modules(model);
  plan.modules_to_save = select_modules_to_save(modules, options.modules_to_save, as_stored);
  TargetRule rule = rule_of(options);
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
void plan_token_rows(AttachmentPlan& plan, const TokenTarget& target, const std::string& name, bool init_weights) {
  PlannedSlot planned{.slot = slot_at(target.module, name)};
  const auto& table = weight_form_of(planned.slot);
  planned.elements = static_cast<double>(target.ids.size()) * static_cast<double>(table.size(1));
  const auto made = std::make_shared<std::shared_ptr<TrainableTokens>>();
  planned.make = [slot = planned.slot, ids = target.ids, made, init_weights] {
    const auto& form = weight_form_of(slot);
    return *made = std::make_shared<TrainableTokens>(form.is_meta() ? form : weight_value_of(slot), ids, init_weights);
  };
  plan.slots.push_back(std::move(planned));
  if (!target.tied) return;
  PlannedSlot follower{.slot = slot_at(*target.tied, name)};
  follower.make = [made] { return std::make_shared<TiedTrainableTokens>(*made); };
  plan.slots.push_back(std::move(follower));
}

/// A table's rows cannot both be replaced and be changed in another way.
void require_rows_alone(const AttachmentPlan& plan, const NamedModule& table) {
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
AttachmentPlan with_token_rows(AttachmentPlan plan, torch::nn::Module& model, const Options& options, const std::string& name) {
  if (!options.token_indices) return plan;
  const auto targets = select_token_targets(model, base_modules(model), *options.token_indices);
  for (const auto& target : targets) {
    require_rows_alone(plan, target.module);
    if (target.tied) require_rows_alone(plan, *target.tied);
  }
  for (const auto& target : targets) plan_token_rows(plan, target, name, /*init_weights=*/true);
  return plan;
}

AttachmentPlan plan_for(LoraOptions& options, torch::nn::Module& model, const std::string& name, bool as_stored) {
  require_bias_word(options.bias);
  require<ConfigError>(
      as_stored || !starts_from_weight(options.init) || !options.rank_stabilized || options.alpha_pattern.empty(),
      "[adapters.inject] alpha_pattern must be empty with use_rslora where init is {}, which is saved as plain LoRA "
      "of twice the rank: PEFT's alphas are whole numbers; found {} entries; leave one of the two out",
      options.init, options.alpha_pattern.size());
  AttachmentPlan plan = plan_weights(model, options, options.bias, as_stored, [&](const std::vector<NamedModule>& targets) {
    warn_unused_patterns(options.rank_pattern, "rank_pattern", targets);
    warn_unused_patterns(options.alpha_pattern, "alpha_pattern", targets);
    std::vector<PlannedSlot> slots;
    for (const auto& target : targets) {
      const LoraSize size = lora_size(options, target.path);
      PlannedSlot planned{.slot = slot_at(target, name)};
      const auto& weight = weight_form_of(planned.slot);
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

AttachmentPlan plan_for(AdaLoraOptions& options, torch::nn::Module& model, const std::string& name, bool as_stored) {
  require_bias_word(options.bias);
  check_adalora(options, /*for_training=*/!as_stored && !options.rank_pattern);
  AttachmentPlan plan = plan_weights(model, options, options.bias, as_stored, [&](const std::vector<NamedModule>& targets) {
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

AttachmentPlan plan_for(Ia3Options& options, torch::nn::Module& model, const std::string& name, bool as_stored) {
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

AttachmentPlan plan_for(TrainableTokensOptions& options, torch::nn::Module& model, const std::string& name, bool /*as_stored*/) {
  AttachmentPlan plan;
  const auto modules = base_modules(model);
  if (!options.targets) options.targets = input_embedding(model, modules).path;
  TargetRule rule{.targets = *options.targets};
  require<ConfigError>(!rule.is_all_linear(),
                       "[adapters.inject] trainable tokens are rows of embeddings; found target_modules all-linear; "
                       "leave target_modules out");
  const auto targets = token_targets_at(select_targets(model, modules, rule), options.token_indices, modules);
  for (const auto& target : targets) plan_token_rows(plan, target, name, options.init_weights);
  return plan;
}

/// The shape that virtual tokens must have; notes the model that takes them.
nn::PromptShape require_prompted(torch::nn::Module& model, AttachmentPlan& plan) {
  plan.prompted = dynamic_cast<nn::CausalLMImpl*>(&model);
  const auto shape = plan.prompted != nullptr ? plan.prompted->prompt_shape() : std::nullopt;
  require<ConfigError>(shape.has_value(),
                       "[adapters.inject] virtual tokens need a causal language model that takes them; found {}; use "
                       "a model with prompt_shape(), or another method",
                       model.name());
  return *shape;
}

AttachmentPlan plan_for(PrefixOptions& options, torch::nn::Module& model, const std::string& /*name*/, bool as_stored) {
  AttachmentPlan plan;
  const auto shape = require_prompted(model, plan);
  const int64_t width = shape.kv_heads * shape.head_dim;
  if (options.encoder_hidden_size == 0) options.encoder_hidden_size = width;
  plan.other_elements = 2.0 * static_cast<double>(options.num_virtual_tokens) * static_cast<double>(shape.layers * width);
  plan.make_prompt = [&options, shape, as_stored] { return make_prefix(options, shape, as_stored); };
  return plan;
}

AttachmentPlan plan_for(PromptOptions& options, torch::nn::Module& model, const std::string& /*name*/, bool as_stored) {
  AttachmentPlan plan;
  const auto shape = require_prompted(model, plan);
  plan.other_elements = static_cast<double>(options.num_virtual_tokens) * static_cast<double>(shape.hidden);
  plan.make_prompt = [made = options, shape, as_stored, prompted = plan.prompted]() mutable {
    if (as_stored) made.init = "RANDOM";
    return make_prompt(made, shape, made.init == "RANDOM" ? at::Tensor() : prompted->input_embeddings());
  };
  return plan;
}

AttachmentPlan plan_for(PTuningOptions& options, torch::nn::Module& model, const std::string& /*name*/, bool as_stored) {
  AttachmentPlan plan;
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

AttachmentPlan plan_for(BottleneckOptions& options, torch::nn::Module& model, const std::string& name, bool /*as_stored*/) {
  AttachmentPlan plan;
  require<ConfigError>(options.mh_adapter || options.output_adapter,
                       "[adapters.bottleneck] mh_adapter or output_adapter must be true; found neither");
  for (const auto& [path, module] : base_modules(model)) {
    const auto block = std::dynamic_pointer_cast<nn::BlockOutputImpl>(module);
    if (!block) continue;
    const bool wanted = last_part(path) == "attention_adapters" ? options.mh_adapter : options.output_adapter;
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

}  // namespace

AttachmentPlan plan_attachment(MethodOptions& options, torch::nn::Module& model, const std::string& name, bool as_stored) {
  return std::visit([&](auto& method) { return plan_for(method, model, name, as_stored); }, options);
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
  if (starts_from_weight(options.init) && !layer.weight.is_meta()) {
    const auto [a_RI, b_OR] = start_factors(options.init, layer.weight_value(), rank, scale);
    adapter->start_from(a_RI.cpu(), b_OR.cpu());
  }
  if (dora) dora->reset_magnitude(layer);
  return adapter;
}

double num_elements(const AttachmentPlan& plan) {
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
  const at::Device device = weight_form_of(slot).device();
  if (!device.is_meta()) slot.adapter->to(device);
  slot.adapter->train(training);
  return slot;
}

}  // namespace lora::adapters
