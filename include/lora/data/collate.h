#pragma once

#include <span>

#include "lora/data/example.h"
#include "lora/ops/batch.h"

namespace lora::data {

/// Rows as one right-padded batch on the CPU: input_ids padded with `pad_id`, labels with
/// kIgnoreLabel.
Batch collate(std::span<const Example* const> examples, int64_t pad_id);

}  // namespace lora::data
