// What decoder models share around their layers: the way through them, virtual tokens before sequences, packed rows, fresh
// weights.
#pragma once

#include <torch/nn/modules/container/modulelist.h>

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "lora/nn/causal_lm.h"
#include "lora/nn/decoder_stream.h"
#include "lora/nn/kv_cache.h"
#include "lora/nn/prompt.h"
#include "lora/ops/batch.h"

// Legend: B batch, S sequence, T keys, D model, G key/value heads, P virtual tokens, K head size, N real tokens.
namespace lora::nn {

/// body(stream, prefix), computed again in the backward pass, where gradients reach both. `prefix`: of one layer; may be empty.
using PartOfStream = std::function<Residual(const Residual& stream, const PrefixKeys& prefix)>;
Residual recomputed(const Residual& stream, const DecoderContext& context, const PrefixKeys& prefix, const PartOfStream& body);

/// The stream through all layers, whose kind is `Layer`, each computed again in the backward pass where the context says so.
/// `prefixes`: one per layer, used where the context counts them.
template <class Layer, class Context>
Residual through_layers(const torch::nn::ModuleList& layers, Residual stream, const Context& context,
                        const std::vector<PrefixKeys>& prefixes) {
  for (size_t i = 0; i < layers->size(); ++i) {
    auto* layer = layers->ptr(i)->template as<Layer>();
    const PrefixKeys prefix = context.num_prefixed > 0 ? prefixes.at(i) : PrefixKeys();
    const auto pass = [layer, context](const Residual& part, const PrefixKeys& keys) {
      return layer->forward(part, context, keys);
    };
    stream = context.recompute == Recompute::kFull ? recomputed(stream, context, prefix, pass) : pass(stream, prefix);
  }
  return stream;
}

/// What stands before the tokens of a pass, in the compute type; nothing of what a cache holds already.
struct VirtualTokens {
  Tensor embeddings_PD;              ///< undefined: none
  std::vector<PrefixKeys> by_layer;  ///< empty: none
  int64_t prefixed() const { return by_layer.empty() ? 0 : by_layer.front().k_GPK.size(1); }
  int64_t embedded() const { return embeddings_PD.defined() ? embeddings_PD.size(0) : 0; }
};
VirtualTokens virtual_tokens(const PromptSlotImpl* prompts, const KvCache* cache, at::ScalarType dtype);

/// Puts prefix keys into a cache, where they stay.
void fill(KvCache& cache, const std::vector<PrefixKeys>& by_layer, int64_t rows);

/// Everybody sees the virtual tokens: their columns stand before those of `seen` (..., S, T).
Tensor with_virtual_columns(const Tensor& seen, int64_t count);

/// A packed row with `count` tokens before each of its sequences.
struct Interleaved {
  std::vector<int64_t> lengths;  ///< of the longer sequences
  Tensor source_N;               ///< what stands at each place: one of the first `count`, or `count` + the number of a real token
  Tensor real_N;                 ///< where the real tokens stand
  Tensor last_N;                 ///< where the last virtual token before each sequence stands
};
Interleaved interleaved(const std::vector<int64_t>& lengths, int64_t count, const at::Device& device);

/// A batch whose sequences begin with embeddings of virtual tokens.
struct Prompted {
  Batch batch;  ///< of the longer rows; only the form of its ids has a meaning
  Tensor x_BSD;
  Tensor real_N = {},
         last_N = {};  ///< of a packed row: where its real tokens stand, and the last virtual one before each sequence
};
Prompted with_embeddings(const Batch& given, const Tensor& x_BSD, const Tensor& prompt_PD);
/// The states of real tokens, and of the last virtual one before each sequence; `count` virtual tokens are embedded.
PredictingStates taken_apart(const Tensor& states_BSD, const Prompted& prompted, int64_t count);

/// A packed batch is one row of sequences, for training. Throws ShapeError, whose message begins with [where].
void check_packed(const Batch& batch, const KvCache* cache, std::string_view where);

/// Hugging Face's rule for fresh weights: norms one, biases zero, everything else normal. Weights in few bits are those of
/// a plain model, drawn and quantised one by one. `tied_twin`: the parameter that is another one's own tensor; empty: none.
void initialize(torch::nn::Module& model, double deviation, const std::string& tied_twin);

}  // namespace lora::nn
