#pragma once

#include <cstdint>
#include <memory>

#include "lora/nn/activation_store.h"
#include "lora/nn/fast_paths.h"
#include "lora/nn/kv_cache.h"
#include "lora/nn/recompute.h"

// Legend: B batch, S sequence, D model, K head size.
namespace lora::nn {

/// What passes between a decoder's layers: the stream, and what the last block adds to it, not yet added, so that the next norm
/// does both in one operation.
struct Residual {
  at::Tensor x_BSD;
  at::Tensor pending_BSD;  ///< undefined: nothing, and x stands as it is
};

/// What every layer of one forward pass shares, whatever the model.
struct DecoderContext {
  at::Tensor cos, sin;  ///< rotary tables (B or 1, 1, S, K/2)
  at::Tensor mask;      ///< bool, true = may look; undefined: the order of the tokens says it all
  KvCache* cache = nullptr;
  FastPaths fast;
  Recompute recompute = Recompute::kNone;
  std::shared_ptr<ActivationStore> activations;  ///< where recomputation keeps its inputs; null: on the device
  bool joined = false;                           ///< attention straight from the projections (ops::joined_attention)
  int64_t num_prefixed = 0;  ///< virtual keys before each sequence's own, where there is no cache to hold them
};

}  // namespace lora::nn
