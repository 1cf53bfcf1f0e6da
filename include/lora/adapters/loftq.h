#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>

#include "lora/adapters/adapter_set.h"

namespace lora {

/// The weight that the layer at a path had before it was quantised: (out, in), any float type.
using PlainWeight = std::function<at::Tensor(const std::string& path)>;

/// How much of the rounding the adapters make up for.
struct LoftqReport {
  int64_t layers = 0;
  /// |W - Q| and |W - (Q + scale * B A)| over all of them, Frobenius, Q being the quantised base before and after.
  double error_before = 0, error_after = 0;
  /// Layers whose quantised weight is another one now, so that the model has to be saved with the adapter.
  int64_t requantized = 0;
};

/// LoftQ (Li et al. 2023): starts a LoRA adapter with the best rank-r approximation of what quantising took from each weight, so
/// that Q + scale * B A is near W. Of each W only one is held at a time, while it is its layer's turn.
///
/// With one iteration (the default) the base stays as it is: anybody who quantises the same model in the same way has it. Each
/// further iteration quantises W - scale * B A anew and fits B A again; of all of them the best is taken, layer by layer. Then
/// the base is another one, which only saving it can bring back.
///
/// The factors hold the root of the singular values each, with the scale taken out. PEFT leaves the scale in, so that its
/// factors are these where lora_alpha / r is 1, and further from W than those where it is not. Layers that are not in few bits
/// begin as with "true", with a warning. Throws ConfigError for an adapter that is not LoRA with init "loftq", is not active or
/// merged, or for a rank above a weight's; ShapeError for a plain weight of another shape.
/// Source: PEFT 0.21.2 utils/loftq_utils.py; the paper's algorithm 1.
LoftqReport initialize_loftq(const AdapterSet& adapters, const PlainWeight& plain_weight, int64_t iterations = 1);

}  // namespace lora
