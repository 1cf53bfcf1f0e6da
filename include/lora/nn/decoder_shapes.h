#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "lora/core/quantization.h"

namespace lora::nn {

/// A linear layer as memory sees it.
struct LinearShape {
  int64_t in = 0, out = 0;
  bool trained = false;  ///< its weight or bias asks for a gradient
  int64_t rank = 0;      ///< of its active low-rank adapters together; 0: none
  int64_t dropouts = 0;  ///< adapters that drop inputs, and so are added by themselves
  bool adapter_trained = false;
  at::ScalarType dtype = at::kFloat;  ///< of its weight
  std::optional<QuantizedType> few_bits = std::nullopt;  ///< its weight is quantised, and made anew for each product

  int64_t numbers() const { return in * out; }
};
class LinearImpl;
/// A layer's shape with what is attached to it now. Its model must be in evaluation mode.
LinearShape shape_of(const LinearImpl& linear);

/// Layers that read the same input.
using LinearGroupShape = std::vector<LinearShape>;

/// One decoder layer: norm, attention, norm, feed-forward (gated; else gate_up has one product).
struct DecoderLayerShape {
  LinearGroupShape qkv, out, gate_up, down;
  bool norms_trained = false;
};

/// A decoder-only model as memory sees it: widths, and what of it trains. The counterpart of nn::CausalLM without
/// weights; each model fills it in (llama::shapes_of).
struct DecoderShapes {
  int64_t hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, vocabulary = 0;
  at::ScalarType weight_dtype = at::kFloat;  ///< of the frozen layers' weights
  at::ScalarType stream_dtype = at::kFloat;  ///< of what passes between layers: the embedding's
  bool embedding_trained = false;            ///< the table or an adapter on it
  bool embedding_table_trained = false;
  std::vector<DecoderLayerShape> layers;
  LinearShape head;
  bool head_is_tied = false, head_has_bias = false;
};

}  // namespace lora::nn
