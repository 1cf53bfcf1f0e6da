#pragma once

#include <vector>

#include "lora/adapters/adapter_set.h"

namespace lora::adapters {

/// Throws ConfigError when two of these adapters, to be active together, claim one place: the same parameter trained whole, the
/// same rows of a table, two prefixes, two prompts of embeddings, or a layer that (IA)^3 scales.
void require_no_conflicts(const std::vector<AdapterSet>& sets);

}  // namespace lora::adapters
