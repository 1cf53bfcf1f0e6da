#pragma once

#include <span>

#include "lora/data/example.h"
#include "lora/ops/batch.h"

namespace lora::data {

/// Rows as one right-padded batch on the CPU: input_ids padded with `pad_id`, labels with
/// kIgnoreLabel, to the length of the longest row. `pad_to_multiple_of` rounds that length up, though not beyond
/// `max_length` (0: no limit): every new shape costs half-precision products on the CPU a plan of their own.
/// `pinned`: in page-locked memory, from which copies to a GPU need not be waited for (LibTorch hands the same blocks out
/// again and again).
Batch collate(std::span<const Example* const> examples, int64_t pad_id, int64_t pad_to_multiple_of = 1, int64_t max_length = 0,
              bool pinned = false);

/// Rows one after the other as one packed row (see Batch::segment_lengths), filled up to a multiple of
/// `pad_to_multiple_of` tokens by a sequence of padding. No row predicts the first token of the next.
Batch collate_packed(std::span<const Example* const> examples, int64_t pad_id, int64_t pad_to_multiple_of = 1,
                     bool pinned = false);

}  // namespace lora::data
