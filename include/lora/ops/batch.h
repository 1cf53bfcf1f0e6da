#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace lora {

/// Label of a position that is no target.
constexpr int64_t kIgnoreLabel = -100;

/// One micro-batch of token rows, padded on the right. B batch, S longest row.
///
/// Causal attention never lets a token see what follows it, so right padding needs no mask: rows stay independent
/// and the labels of padding are -100. `attention_mask_BS` is only needed when padding stands elsewhere, or when
/// outputs at padded positions matter.
struct Batch {
  at::Tensor input_ids_BS;       ///< int64
  at::Tensor labels_BS;          ///< int64, unshifted: labels[b][i] is input_ids[b][i] or -100; undefined: no loss
  at::Tensor attention_mask_BS;  ///< int64 or bool, 1 = real token; undefined: every position counts
  at::Tensor position_ids_BS;    ///< int64; undefined: 0..S-1 in every row
  /// A packed batch: B is 1, and the row is made of independent sequences of these lengths, one after the other. Each
  /// sequence starts at position 0 and sees itself alone; mask and position ids are then undefined. Empty: not packed.
  std::vector<int64_t> segment_lengths;
  std::vector<int64_t> rows;     ///< row numbers in the data set, for messages
  int64_t num_tokens = 0;        ///< input tokens without padding
  int64_t num_targets = 0;       ///< labels other than -100 after the shift (the first label of a row never counts)

  Batch to(const at::Device& device) const;
};

}  // namespace lora
