#include "adapters/token_targets.h"

#include <algorithm>

#include "adapters/listing.h"
#include "core/check.h"
#include "lora/core/pattern.h"
#include "lora/core/text.h"
#include "lora/nn/causal_lm.h"
#include "lora/nn/embedding.h"
#include "lora/nn/linear.h"

namespace lora::adapters {
namespace {

const at::TensorImpl* weight_of(const torch::nn::Module& module) {
  if (const auto* embedding = dynamic_cast<const nn::EmbeddingImpl*>(&module)) return embedding->weight.unsafeGetTensorImpl();
  if (const auto* linear = dynamic_cast<const nn::LinearImpl*>(&module)) return linear->weight.unsafeGetTensorImpl();
  return nullptr;
}

bool is_embedding(const NamedModule& named) { return dynamic_cast<const nn::EmbeddingImpl*>(named.module.get()) != nullptr; }

/// Lets a head follow its embedding: the embedding's target takes over one of the same ids at the head.
std::vector<TokenTarget> tied(std::vector<TokenTarget> targets, const std::vector<NamedModule>& modules) {
  std::vector<TokenTarget> result;
  std::vector<const torch::nn::Module*> followers;
  for (auto& target : targets) {
    const auto sharer = is_embedding(target.module) ? sharer_of_weight(target.module, modules) : std::nullopt;
    if (!sharer) continue;
    const auto own = std::ranges::find_if(targets, [&](const auto& other) { return other.module.module == sharer->module; });
    if (own != targets.end() && own->ids != target.ids) continue;
    target.tied = *sharer;
    followers.push_back(sharer->module.get());
  }
  std::ranges::copy_if(targets, std::back_inserter(result), [&](const auto& target) {
    return std::ranges::find(followers, target.module.module.get()) == followers.end();
  });
  return result;
}

std::vector<NamedModule> named(const std::string& name, const std::vector<NamedModule>& modules) {
  std::vector<NamedModule> found;
  std::vector<std::string> near;
  for (const auto& module : modules) {
    if (is_adaptable(*module.module)) near.push_back(last_part(module.path));
    if (is_adaptable(*module.module) && matches_suffix(module.path, name)) found.push_back(module);
  }
  require<ConfigError>(!found.empty(),
                       "[adapters.inject] trainable_token_indices must name embeddings; found no match for {}; near names "
                       "are: {}; correct it",
                       quote_name(name), fmt::join(nearest_names(name, near), ", "));
  return found;
}

}  // namespace

std::optional<NamedModule> sharer_of_weight(const NamedModule& module, const std::vector<NamedModule>& modules) {
  const auto* weight = weight_of(*module.module);
  const auto found = std::ranges::find_if(modules, [&](const auto& other) {
    return other.module != module.module && weight_of(*other.module) == weight && weight != nullptr;
  });
  return found == modules.end() ? std::nullopt : std::optional(*found);
}

NamedModule input_embedding(const torch::nn::Module& model, const std::vector<NamedModule>& modules) {
  // input_embeddings() only hands out a member, as head() does.
  auto* causal = dynamic_cast<nn::CausalLMImpl*>(const_cast<torch::nn::Module*>(&model));
  const at::Tensor table = causal == nullptr ? at::Tensor() : causal->input_embeddings();
  const auto found = std::ranges::find_if(modules, [&](const auto& named) {
    if (!is_embedding(named)) return false;
    return table.defined() ? weight_of(*named.module) == table.unsafeGetTensorImpl() : last_part(named.path) == "embed_tokens";
  });
  require<ConfigError>(found != modules.end(),
                       "[adapters.inject] trainable_token_indices as a list are rows of the model's input embedding; "
                       "found none in {}; give a map from the embedding's name to the list",
                       model.name());
  return *found;
}

std::vector<TokenTarget> select_token_targets(const torch::nn::Module& model, const std::vector<NamedModule>& modules,
                                              const TokenIndices& indices) {
  if (const auto* ids = std::get_if<std::vector<int64_t>>(&indices)) {
    return token_targets_at({input_embedding(model, modules)}, *ids, modules);
  }
  std::vector<TokenTarget> targets;
  for (const auto& [name, ids] : std::get<1>(indices)) {
    for (const auto& module : named(name, modules)) {
      const bool is_new =
          std::ranges::none_of(targets, [&](const auto& target) { return target.module.module == module.module; });
      require<ConfigError>(is_new, "[adapters.inject] trainable_token_indices must name a module once; found {} twice",
                           quote_name(module.path));
      targets.push_back({module, ids});
    }
  }
  return tied(std::move(targets), modules);
}

std::vector<TokenTarget> token_targets_at(const std::vector<NamedModule>& chosen, const std::vector<int64_t>& ids,
                                          const std::vector<NamedModule>& modules) {
  std::vector<TokenTarget> targets;
  for (const auto& module : chosen) targets.push_back({module, ids});
  return tied(std::move(targets), modules);
}

}  // namespace lora::adapters
