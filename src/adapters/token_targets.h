// Which rows of which tables train: trainable_token_indices.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "adapters/module_tree.h"
#include "lora/adapters/trainable_tokens.h"

namespace lora::adapters {

/// One table whose rows train.
struct TokenTarget {
  NamedModule module;
  std::vector<int64_t> ids;
  std::optional<NamedModule> tied = {};  ///< the other place of its weight, which follows
};

/// The model's table of token embeddings. Throws ConfigError when there is none to be found.
NamedModule input_embedding(const torch::nn::Module& model, const std::vector<NamedModule>& modules);

/// The tables that the indices name, an embedding's head following it where they share a weight and are not given different
/// ids, as in PEFT 0.21 utils/other.py. Throws ConfigError for a name of no Linear or Embedding.
std::vector<TokenTarget> select_token_targets(const torch::nn::Module& model, const std::vector<NamedModule>& modules,
                                              const TokenIndices& indices);

/// The same for modules that were found already, all with the same ids.
std::vector<TokenTarget> token_targets_at(const std::vector<NamedModule>& chosen, const std::vector<int64_t>& ids,
                                          const std::vector<NamedModule>& modules);

/// Another module that has the very weight of this one; nothing: the weight is its own.
std::optional<NamedModule> sharer_of_weight(const NamedModule& module, const std::vector<NamedModule>& modules);

}  // namespace lora::adapters
