// Memory that is freed, and that nothing finds a use for again.
#pragma once

#include <cstdint>

#include "train/step_sizes.h"

namespace lora::train {

/// Bytes of the holes where packing freed weights, or copies of them.
struct PackingHoles {
  double by_layers = 0, by_head = 0;
};

/// What the C library's heap cannot use again; 0 for a GPU, whose allocator keeps blocks by size.
int64_t kept_by_heap(const StepSizes& sizes, const PackingHoles& holes);

/// What products themselves keep.
int64_t kept_by_products(const StepSizes& sizes);

/// Of the packed copies of a weight that stays, the share that leaves a hole.
double hole_of_copies(int64_t bytes);

}  // namespace lora::train
