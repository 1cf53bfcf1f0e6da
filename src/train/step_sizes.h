// How large the tensors of one micro-batch are: what a model's operations make and keep, by the run's options.
#pragma once

#include <cstdint>
#include <vector>

#include "lora/train/memory_plan.h"

// Legend: N tokens of a micro-batch, P places of attention (N without packed rows and virtual tokens' rows), D model, H heads, K
// head size, Q width of all query heads, W of queries, keys and values, F feed-forward, V vocabulary, R rank, T real tokens,
// without the virtual ones that N counts.
namespace lora::train {

inline int64_t bytes_of(at::ScalarType type) { return static_cast<int64_t>(c10::elementSize(type)); }

/// A group of linear layers and the packed forms that it has by now.
struct Group {
  const nn::LinearGroupShape* shape;
  bool is_head = false;
  bool packed = false, transposed = false;

  int64_t numbers() const {
    int64_t sum = 0;
    for (const auto& layer : *shape) sum += layer.numbers();
    return sum;
  }
  int64_t inputs() const { return shape->front().in; }
  int64_t outputs() const {
    int64_t sum = 0;
    for (const auto& layer : *shape) sum += layer.out;
    return sum;
  }
  int64_t ranks() const {
    int64_t sum = 0;
    for (const auto& layer : *shape) sum += layer.rank;
    return sum;
  }
  int64_t dropouts() const {
    int64_t sum = 0;
    for (const auto& layer : *shape) sum += layer.dropouts;
    return sum;
  }
  bool has_trained_weight() const {
    return std::ranges::any_of(*shape, [](const nn::LinearShape& layer) { return layer.trained; });
  }
  bool trains() const {
    return std::ranges::any_of(*shape, [](const nn::LinearShape& layer) { return layer.trained || layer.adapter_trained; });
  }
  bool is_in_few_bits() const {
    return std::ranges::any_of(*shape, [](const nn::LinearShape& layer) { return layer.few_bits.has_value(); });
  }
  int64_t rows_for_scales() const {
    int64_t sum = 0;
    for (const auto& layer : *shape) sum += layer.rows_for_scales;
    return sum;
  }
  bool scales_outputs() const {
    return std::ranges::any_of(*shape, [](const nn::LinearShape& layer) { return layer.output_scaled; });
  }
  bool scales_inputs() const {
    return std::ranges::any_of(*shape, [](const nn::LinearShape& layer) { return layer.input_scaled; });
  }
  /// Gradients of what trains: of adapters in fp32, of weights in their own type.
  int64_t gradient_bytes() const {
    int64_t sum = 0;
    for (const auto& layer : *shape) {
      if (layer.trained) sum += layer.numbers() * bytes_of(layer.dtype);
      sum += layer.adapter_numbers * 4;
    }
    return sum;
  }
};

/// What one layer's operations keep for the backward pass.
struct Kept {
  int64_t norm1 = 0, qkv = 0, attention = 0, out = 0, after_attention = 0, norm2 = 0, gate_up = 0, activation = 0, down = 0,
          after_feed_forward = 0;
};

using Bottlenecks = std::vector<nn::BottleneckShape>;

struct Layer {
  Group qkv, out, gate_up, down;
  const Bottlenecks *after_attention, *after_feed_forward;
  bool norms_trained = false;
  bool has_prefix = false;
  bool input_has_gradient = false;  ///< something below it trains

  bool attention_has_gradient() const { return input_has_gradient || norms_trained || has_prefix || qkv.trains(); }
  bool half_has_gradient() const { return attention_has_gradient() || out.trains() || !after_attention->empty(); }
  bool output_has_gradient() const {
    return half_has_gradient() || gate_up.trains() || down.trains() || !after_feed_forward->empty();
  }
  Kept kept;
  int64_t inputs_kept = 0;  ///< by recomputation
};

/// Pure: the same inputs, to which it refers, give the same sizes.
struct StepSizes {
  explicit StepSizes(const MemoryInputs& inputs);

  int64_t tokens() const;
  /// In one micro-batch.
  int64_t sequences() const;
  int64_t places() const;
  /// Of a sequence that attention sees, in the worst case.
  int64_t longest() const;
  bool has_prefix_rows() const { return shapes.qkv_by_heads && shapes.prefixed_tokens > 0; }
  bool on_cpu() const { return in.device == c10::kCPU; }
  /// ops/rows.h: kernels exist on the CPU for bf16 and fp32.
  bool has_kernel(bool wanted) const;
  bool is_joined(const Group& group) const { return in.fast_paths.joined && !group.has_trained_weight(); }
  bool is_streamed(const Group& group) const { return in.streams_layers && !group.is_head && !group.has_trained_weight(); }
  bool can_pack(const Group& group) const;
  bool is_converted() const { return shapes.weight_dtype != compute_type; }
  /// LinearGroup::pack: a weight that others hold, or of another type, stays.
  bool is_released(const Group& group) const;
  int64_t form_bytes(const Group& group) const { return group.numbers() * compute; }
  int64_t layer_count() const { return static_cast<int64_t>(shapes.layers.size()); }
  int64_t streamed_bytes() const;
  /// Packed for one product. Weights that came together lie side by side: only another type makes a copy of them.
  int64_t brought_bytes(const Group& group) const { return form_bytes(group) * (is_converted() ? 2 : 1); }
  /// Numbers made out of few bits: of a joined group all, else of one layer after the other; in the parameter's type or
  /// (nn::LinearImpl::passing_dtype) straight in the product's. Plain products of half precision lay them out anew.
  int64_t made_bytes(const Group& group) const;
  /// Plain weights of another type than the product's are converted for it, one layer after the other.
  int64_t cast_bytes(const Group& group) const;
  bool needs_input(const Group& group) const;
  /// Products with the A factors, the factors as they were multiplied, each dropout's mask, and the cast of a trained weight,
  /// which autocast keeps.
  int64_t kept_beside_input(const Group& group) const;
  /// Copies of the factors in the products' type, the A factors of several layers below each other, the B factors scaled.
  int64_t factor_bytes(const Group& group) const;
  /// What the last norm of the layer before gave, while this layer runs, where no product keeps it.
  int64_t normed_before_bytes(const Layer& layer) const;
  /// Whether the input that a product keeps is what a norm gave.
  bool keeps_normed(const Group& group) const { return needs_input(group) && stream == compute; }
  /// A norm's sum and its rows' statistics.
  int64_t norm_bytes() const { return N * D * stream + N * 4 * (shapes.layer_norms ? 2 : 1); }
  /// Attention straight from the projections, which takes packed rows as they are, as a GPU's attention by bounds does.
  bool attends_joined() const;
  /// Elsewhere they are laid out class by class, which is planned as one class.
  bool attends_by_class() const;
  /// Queries, keys, values, the result and each row's normaliser.
  int64_t attention_bytes() const;
  /// Queries and the result; keys and values of virtual tokens before each sequence's own, for every query head; the mask as
  /// numbers, and each row's normaliser.
  int64_t prefixed_attention_bytes() const;
  /// Embedded tokens with the real ones; keys and values of all layers, in fp32 as a network makes them and in the products'
  /// type.
  int64_t virtual_token_bytes() const;
  /// Cosines and sines of each place by itself; tables by position alone are small.
  int64_t rotary_bytes() const { return shapes.qkv_by_heads ? P * shapes.head_dim * 4 : 0; }
  /// Of the stream between layers, and of what is still to be added to it when that has a type of its own.
  int64_t gradient_bytes() const { return N * D * (stream + (stream == compute ? 0 : compute)); }
  /// Where the next sum begins with what a norm gave: that comes out beside the result, and the gradient of the result, being one
  /// of its own, waits until all of the part is done.
  int64_t beside_result_bytes(const Layer& layer) const;
  /// Of a block's result, where it is not the stream's: that is scaled. In another type it is counted with the stream's.
  int64_t result_gradient_bytes() const { return shapes.adds_to_normed && stream == compute ? N * D * compute : 0; }
  /// The backward pass of one thread: one head of the longest sequence in the products' type three times, its gradients
  /// twice in fp32, and a block's scores, twice in fp32 and three times narrow.
  int64_t attention_block_bytes() const;
  int64_t prefixed_gradient_bytes() const { return (P * Q + 2 * (P + sequences() * shapes.prefixed_tokens) * Q) * compute; }

  const MemoryInputs& in;
  const nn::DecoderShapes& shapes;
  const int64_t stream;  ///< bytes of a number of the stream between layers
  const at::ScalarType compute_type;
  const int64_t compute, weight;
  const int64_t T, N, P, D, Q, W;
};

}  // namespace lora::train
