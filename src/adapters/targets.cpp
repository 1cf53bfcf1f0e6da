#include "adapters/targets.h"

#include <algorithm>
#include <set>

#include "adapters/listing.h"
#include "core/check.h"
#include "lora/core/log.h"
#include "lora/core/pattern.h"
#include "lora/core/text.h"
#include "lora/nn/causal_lm.h"
#include "lora/nn/embedding.h"
#include "lora/nn/linear.h"

namespace lora::adapters {
namespace {

std::vector<NamedModule> matching(const TargetRule& rule, const std::vector<NamedModule>& modules) {
  const TargetMatcher matcher(rule);
  std::vector<NamedModule> matched;
  std::ranges::copy_if(modules, std::back_inserter(matched), [&](const auto& module) { return matcher.matches(module.path); });
  return matched;
}

/// Output heads: what the causal language models of the tree say; without such a model the usual
/// names.
class Heads {
 public:
  Heads(const torch::nn::Module& model, const std::vector<NamedModule>& modules) {
    add_head_of(model);
    for (const auto& named : modules) add_head_of(*named.module);
  }

  bool contains(const NamedModule& named) const {
    if (!heads_.empty()) return heads_.contains(named.module.get());
    const std::string name = last_part(named.path);
    return name == "lm_head" || name == "output_layer";
  }

 private:
  void add_head_of(const torch::nn::Module& module) {
    // head() only hands out a member, but a virtual method that gives a mutable module cannot be
    // const.
    auto* model = dynamic_cast<nn::CausalLMImpl*>(const_cast<torch::nn::Module*>(&module));
    if (model != nullptr) heads_.insert(model->head().get());
  }

  std::set<const torch::nn::Module*> heads_;
};

std::vector<std::string> sorted_unique(std::vector<std::string> names) {
  std::ranges::sort(names);
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

std::vector<std::string> paths_of(const std::vector<NamedModule>& modules) {
  std::vector<std::string> paths;
  for (const auto& named : modules) paths.push_back(named.path);
  return paths;
}

std::vector<std::string> last_parts_of(const std::vector<NamedModule>& modules) {
  std::vector<std::string> names;
  for (const auto& named : modules) names.push_back(last_part(named.path));
  return sorted_unique(std::move(names));
}

/// The shortest list that means exactly `chosen`: last names when no other module shares them, else
/// whole paths.
std::vector<std::string> names_for(const std::vector<NamedModule>& chosen, TargetRule rule,
                                   const std::vector<NamedModule>& modules) {
  auto names = last_parts_of(chosen);
  rule.targets = names;
  if (matching(rule, modules).size() == chosen.size()) return names;
  return sorted_unique(paths_of(chosen));
}

std::vector<NamedModule> select_all_linear(const torch::nn::Module& model, const std::vector<NamedModule>& modules,
                                           TargetRule& rule) {
  const Heads heads(model, modules);
  auto chosen = matching(rule, modules);
  std::erase_if(chosen, [&](const auto& named) {
    return dynamic_cast<const nn::LinearImpl*>(named.module.get()) == nullptr || heads.contains(named);
  });
  if (!chosen.empty()) rule.targets = names_for(chosen, rule, modules);
  return chosen;
}

std::vector<NamedModule> adaptable(const std::vector<NamedModule>& modules) {
  std::vector<NamedModule> found;
  std::ranges::copy_if(modules, std::back_inserter(found), [](const auto& named) { return is_adaptable(*named.module); });
  return found;
}

bool names_any(const std::string& item, const std::vector<NamedModule>& modules) {
  return std::ranges::any_of(modules, [&](const auto& named) { return matches_suffix(named.path, item); });
}

/// Up to three names near `item`, of the kind that it has: paths for something with dots, else last
/// names.
std::vector<std::string> near_names(const std::string& item, const std::vector<NamedModule>& modules) {
  const bool is_path = item.find('.') != std::string::npos;
  return nearest_names(item, is_path ? paths_of(modules) : last_parts_of(modules));
}

[[noreturn]] void fail_without_match(const TargetRule& options, const std::vector<NamedModule>& modules) {
  const auto candidates = adaptable(modules);
  require<ConfigError>(!candidates.empty(),
                       "[adapters.inject] the model must have layers that take an adapter; found "
                       "none among {} modules; "
                       "build it with lora::nn::Linear and lora::nn::Embedding",
                       modules.size());
  if (const auto* text = std::get_if<std::string>(&options.targets)) {
    fail<ConfigError>(
        "[adapters.inject] the targets must match a module; found no match for {} (a single "
        "string is a regular "
        "expression over the whole path); {} modules can take an adapter, near names are: {}; give "
        "a list of names, or "
        "an expression such as .*\\.q_proj",
        quote_name(*text), candidates.size(), fmt::join(near_names(*text, candidates), ", "));
  }
  const auto& items = std::get<std::vector<std::string>>(options.targets);
  require<ConfigError>(!items.empty(),
                       "[adapters.inject] the targets must name at least one module; found an "
                       "empty list; {} modules can "
                       "take an adapter, for example {}",
                       candidates.size(), candidates.front().path);
  const bool named = std::ranges::any_of(items, [&](const auto& item) { return names_any(item, candidates); });
  require<ConfigError>(!named,
                       "[adapters.inject] the targets must match a module; found that "
                       "exclude_modules, modules_to_save "
                       "or layers_to_transform leave none of what [{}] names; loosen one of them",
                       listed_names(items));
  fail<ConfigError>(
      "[adapters.inject] the targets must match a module; found no match for [{}]; {} modules can "
      "take an adapter, near "
      "names are: {}; correct target_modules",
      listed_names(items), candidates.size(), fmt::join(near_names(items.front(), candidates), ", "));
}

void warn_unmatched_items(const TargetRule& options, const std::vector<NamedModule>& modules) {
  const auto* items = std::get_if<std::vector<std::string>>(&options.targets);
  if (items == nullptr) return;
  std::vector<std::string> unmatched;
  std::ranges::copy_if(*items, std::back_inserter(unmatched), [&](const auto& item) { return !names_any(item, modules); });
  if (unmatched.empty()) return;
  log::warn(fmt::format("[adapters.inject] {} of the targets name no module and are ignored: {}; near names are: {}",
                        unmatched.size(), listed_names(unmatched),
                        fmt::join(near_names(unmatched.front(), adaptable(modules)), ", ")));
}

}  // namespace

std::vector<NamedModule> select_targets(const torch::nn::Module& model, const std::vector<NamedModule>& modules,
                                        TargetRule& rule) {
  auto chosen = rule.is_all_linear() ? select_all_linear(model, modules, rule) : matching(rule, modules);
  if (chosen.empty()) fail_without_match(rule, modules);
  for (const auto& named : chosen) {
    require<ConfigError>(is_adaptable(*named.module),
                         "[adapters.inject] a target must be a lora::nn::Linear or Embedding; "
                         "found {} at {:?}; name the "
                         "layers inside it, or exclude it",
                         named.module->name(), named.path);
  }
  warn_unmatched_items(rule, modules);
  return chosen;
}

std::vector<NamedModule> select_modules_to_save(const std::vector<NamedModule>& modules, const std::vector<std::string>& items,
                                                bool as_stored) {
  for (const auto& item : items) {
    const bool names_one = std::ranges::any_of(modules, [&](const auto& named) { return named.path.ends_with(item); });
    if (!names_one && as_stored)
      log::warn(fmt::format("[adapters.load] modules_to_save names no module with {}", quote_name(item)));
    require<ConfigError>(
        names_one || as_stored,
        "[adapters.inject] every item of modules_to_save must name a module; found no match for {}; near names are: "
        "{}; correct or remove it",
        item, fmt::join(near_names(item, modules), ", "));
  }
  std::vector<NamedModule> chosen;
  std::ranges::copy_if(modules, std::back_inserter(chosen), [&](const auto& named) {
    return std::ranges::any_of(items, [&](const auto& item) { return named.path.ends_with(item); });
  });
  return chosen;
}

template <class Value>
void warn_unused_patterns(const std::vector<std::pair<std::string, Value>>& entries, const char* option,
                          const std::vector<NamedModule>& targets) {
  std::vector<std::string> unused;
  for (const auto& entry : entries) {
    const PatternMap<Value> pattern({entry}, option);
    const bool used = std::ranges::any_of(targets, [&](const auto& named) { return pattern.find(named.path).has_value(); });
    if (!used) unused.push_back(entry.first);
  }
  if (unused.empty()) return;
  log::warn(
      fmt::format("[adapters.inject] {} entries of {} match no adapted module: {}", unused.size(), option, listed_names(unused)));
}

template void warn_unused_patterns(const std::vector<std::pair<std::string, int64_t>>&, const char*,
                                   const std::vector<NamedModule>&);
template void warn_unused_patterns(const std::vector<std::pair<std::string, double>>&, const char*,
                                   const std::vector<NamedModule>&);

}  // namespace lora::adapters
