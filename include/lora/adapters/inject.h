#pragma once

#include <concepts>
#include <string>
#include <vector>

#include "lora/adapters/adapter_set.h"

namespace lora {

/// Attaches a method's adapter to `model`, makes it the active one and its parameters trainable; nothing else changes (see
/// freeze_base). LoRA, AdaLoRA and (IA)^3 go to every nn::Linear (LoRA: and nn::Embedding) that the options name, bottleneck
/// adapters to the block outputs, virtual tokens before the sequences of an nn::CausalLM.
///
/// For the first group any torch::nn::Module tree will do as long as its layers are lora::nn::Linear / Embedding.
/// Throws ConfigError, with the model as it was, when no module matches (showing near names), a
/// named module is neither, the adapter name is taken, empty or holds a dot or "lora", or when a
/// target or module to save shares its weight with another module (tied weights). Warns about a
/// target item that names nothing while others do.
///
/// The model carries a record of its adapters as a child module "lora_adapters", which has no
/// parameters. Source: PEFT 0.21 tuners.
AdapterSet inject_method(torch::nn::Module& model, const MethodOptions& options, const std::string& name = "default");

/// The same for LoRA, whose options can be written in place: inject(model, {.rank = 4}).
inline AdapterSet inject(torch::nn::Module& model, const LoraOptions& options, const std::string& name = "default") {
  return inject_method(model, options, name);
}
/// The same for the options of another method.
template <class Options>
requires(std::constructible_from<MethodOptions, Options> && !std::same_as<Options, LoraOptions>) AdapterSet
    inject(torch::nn::Module& model, const Options& options, const std::string& name = "default") {
  return inject_method(model, options, name);
}

/// Makes these adapters the active ones, in this order, switched on and trainable; all others stop
/// training. Merged weights are unmerged first; slots that lack an adapter skip it. Throws
/// ConfigError for a name that the model does not have, and when two of them claim one place: the same parameter trained
/// whole, two prefixes, two prompts of embeddings, or a layer that (IA)^3 scales.
void set_active_adapters(torch::nn::Module& model, const std::vector<std::string>& names);

/// Names of the active adapters, in their order.
std::vector<std::string> active_adapters(torch::nn::Module& model);

/// Every adapter of the model, in the order of injection.
std::vector<AdapterSet> adapters_of(torch::nn::Module& model);

/// Removes an adapter from every slot (unmerging first); parameters that it trained whole get their
/// base values back. When it was the only active one, the first that remains becomes active. Throws
/// ConfigError when there is none of that name.
void remove_adapter(torch::nn::Module& model, const std::string& name);

/// Paths of all modules that can take a LoRA adapter.
std::vector<std::string> adaptable_modules(torch::nn::Module& model);

}  // namespace lora
