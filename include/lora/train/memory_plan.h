#pragma once

#include <c10/core/Device.h>

#include <cstdint>

#include "lora/nn/decoder_shapes.h"
#include "lora/nn/fast_paths.h"
#include "lora/nn/recompute.h"
#include "lora/train/parameter_memory.h"

namespace lora::train {

/// Everything that a run's memory depends on.
struct MemoryInputs {
  nn::DecoderShapes shapes;
  ParameterMemory parameters;
  nn::FastPaths fast_paths;
  nn::Recompute recompute = nn::Recompute::kNone;
  c10::DeviceType device = c10::kCPU;
  at::ScalarType amp_dtype = at::kFloat;  ///< kFloat: off
  bool packing_pays = false;              ///< ops::PackedWeight::pays for the type of the products
  bool streams_layers = false;            ///< frozen layers' weights pass through, two layers at a time

  int64_t micro_batch = 1;  ///< rows; with packing sequences, which make one row together
  int64_t row_tokens = 1;   ///< of the longest row, padding included
  bool packed_rows = false;
  /// Places that attention by length class lays out for each token of a packed row (see ops::Segments).
  double places_per_token = 1;
  int64_t longest_sequence = 0;  ///< of a packed row's sequences, in tokens; 0: a whole row
  double sequences_per_row = 1;  ///< of packed rows
  int64_t grad_accum = 1;

  uint64_t loading_bytes = 0;  ///< the largest weight that is converted while it is read
  uint64_t data_bytes = 0;     ///< the data sets
  bool saves_base = false;     ///< base weights are saved beside an adapter
};

/// Where the memory of a run goes. Each part is the most that it ever takes; not all of them do so
/// at once, and what products and blocks need for a moment is in the peak alone.
struct MemoryPlan {
  ParameterMemory parameters;
  uint64_t packed_bytes = 0;  ///< what packed weights take beyond the plain ones
  uint64_t activations_bytes = 0;
  uint64_t logits_bytes = 0;
  uint64_t program_bytes = 0;  ///< the program itself, LibTorch above all, and the data
  uint64_t tensors_bytes = 0;  ///< the most that all tensors take together
  uint64_t kept_bytes = 0;     ///< freed, and kept by the allocator in pieces too small to reuse
  uint64_t peak_bytes = 0;
};

/// No plan is made for more tokens in one micro-batch: byte counts stay far from overflowing.
constexpr int64_t kMostTokens = int64_t{1} << 32;

/// Rehearses loading, two optimizer steps and saving with the sizes of all tensors that the model's
/// operations make, keep and let go, and remembers the most that ever existed together. Pure: the
/// same inputs give the same plan, and nothing is allocated.
MemoryPlan plan_memory(const MemoryInputs& inputs);

/// The largest micro-batch whose peak is at most `memory_bytes`, whatever inputs.micro_batch says;
/// 0: not even one row fits.
int64_t largest_micro_batch(MemoryInputs inputs, uint64_t memory_bytes);

}  // namespace lora::train
