#pragma once

#include <c10/core/ScalarType.h>
#include <torch/nn/module.h>

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
  int64_t adapter_numbers = 0;                       ///< that its adapters train
  int64_t products_of_factors = 0;                   ///< numbers of factors that are made anew for each pass (AdaLoRA: A times E)
  bool output_scaled = false, input_scaled = false;  ///< adapters scale what it gives, or what it takes
  int64_t rows_for_scales = 0;                       ///< rows multiplied with its weight to find those scales (DoRA)
  at::ScalarType dtype = at::kFloat;                 ///< of its weight
  std::optional<QuantizedType> few_bits = std::nullopt;  ///< its weight is quantised, and made anew for each product

  int64_t numbers() const { return in * out; }
};
class LinearImpl;
/// A layer's shape with what is attached to it now. Its model must be in evaluation mode.
LinearShape shape_of(const LinearImpl& linear);

/// Layers that read the same input.
using LinearGroupShape = std::vector<LinearShape>;

/// A bottleneck adapter behind a block.
struct BottleneckShape {
  int64_t size = 0;                      ///< numbers between its two layers
  int64_t numbers = 0;                   ///< that it trains
  bool reads_stream = false;             ///< instead of the block's output
  bool drops = false;                    ///< inputs, in training
  bool keeps_before_activation = false;  ///< beside what comes out of it
  bool learns_scale = false;
};

/// One decoder layer: norm, attention, norm, feed-forward (gated; else gate_up has one layer, as wide as down's input).
struct DecoderLayerShape {
  LinearGroupShape qkv, out, gate_up, down;
  bool norms_trained = false;
  std::vector<BottleneckShape> attention_adapters = {}, output_adapters = {};
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
  bool layer_norms = false;     ///< mean and variance norms with a bias; else root mean square
  bool adds_to_normed = false;  ///< blocks add to what a norm gives (ChatGLM), not to what it reads
  /// The fused qkv product stands head by head and is laid out anew; each token has its own rotary tables, keys and values of
  /// virtual tokens stand as rows before those of each sequence, and packed sequences are attended one by one (ChatGLM).
  bool qkv_by_heads = false;
  int64_t prefixed_tokens = 0, embedded_tokens = 0;  ///< virtual ones before each sequence: keys and values, or embeddings
  int64_t prompt_numbers = 0;                        ///< that virtual tokens train, with the networks that make them
};

class CausalLMImpl;
/// Counts the virtual tokens of now.
void add_virtual_tokens(const CausalLMImpl& model, DecoderShapes& shapes);
/// Numbers that a module's optimizer sees.
int64_t trained_numbers(const torch::nn::Module& module);

}  // namespace lora::nn
