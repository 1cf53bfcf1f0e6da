// A training run played through with the sizes of its tensors.
#pragma once

#include "train/kept_memory.h"
#include "train/memory_ledger.h"
#include "train/step_sizes.h"

namespace lora::train {

/// What a rehearsed run held, and left behind.
struct Rehearsed {
  Ledger ledger;
  int64_t packed_bytes = 0;  ///< what packed weights take beyond the plain ones
  PackingHoles holes;
};

/// Rehearses loading, two optimizer steps and saving.
Rehearsed rehearse(const MemoryInputs& inputs);

}  // namespace lora::train
