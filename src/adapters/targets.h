// Which modules of a model the options of an adapter mean.
#pragma once

#include <torch/nn/module.h>

#include <string>
#include <utility>
#include <vector>

#include "adapters/module_tree.h"
#include "lora/core/pattern.h"

namespace lora::adapters {

/// What the options of a method on weights say about modules.
template <class Options>
TargetRule rule_of(const Options& options) {
  TargetRule rule{.targets = options.targets, .exclude = options.exclude, .modules_to_save = options.modules_to_save};
  if constexpr (requires { options.layers_pattern; }) {
    rule.layers_to_transform = options.layers_to_transform;
    rule.layers_pattern = options.layers_pattern;
  }
  return rule;
}

/// The modules that get an adapter, all of them Linear or Embedding. Replaces "all-linear" in
/// `rule` by the names that it stood for. Throws ConfigError when nothing matches or a match is
/// neither.
std::vector<NamedModule> select_targets(const torch::nn::Module& model, const std::vector<NamedModule>& modules,
                                        TargetRule& rule);

/// The modules that are trained whole: those whose path ends with an item, as PEFT has it ("norm" is input_layernorm, too).
/// Throws ConfigError for an item that names none, unless `as_stored`: files carry the heads of other models' kinds.
std::vector<NamedModule> select_modules_to_save(const std::vector<NamedModule>& modules, const std::vector<std::string>& items,
                                                bool as_stored);

/// Warns about keys of rank_pattern or alpha_pattern (`option`) that match none of the targets.
template <class Value>
void warn_unused_patterns(const std::vector<std::pair<std::string, Value>>& entries, const char* option,
                          const std::vector<NamedModule>& targets);

}  // namespace lora::adapters
