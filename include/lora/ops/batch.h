#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace lora {

/// Label of a position that is no target.
constexpr int64_t kIgnoreLabel = -100;

/// The targets of a batch after the shift, found on the CPU: finding them on a GPU would wait for it.
struct Targets {
  at::Tensor position_T;  ///< int64: which of the B * (S - 1) positions that have a successor, row by row
  at::Tensor label_T;     ///< int64, what follows there
  /// First tokens that have a label, which only a virtual token before them predicts (nn::CausalLM::predicts_first_tokens):
  /// int64, the sequence (a row, or one of a packed row), and the label.
  at::Tensor first_F, first_label_F;
  int64_t largest = -1;  ///< of the labels; -1: there are none

  bool defined() const { return label_T.defined(); }
};

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
  Targets targets;                ///< of labels_BS; filled in on the way to a GPU
  at::Tensor host_ids_BS;         ///< input_ids_BS, kept on the way to a GPU for whoever reads them; undefined: there are none
  std::vector<int64_t> rows;      ///< row numbers in the data set, for messages
  int64_t num_tokens = 0;         ///< input tokens without padding
  int64_t num_targets = 0;        ///< labels other than -100 after the shift, in which a sequence's first label has no part
  int64_t num_first_targets = 0;  ///< sequences whose first label is not -100: targets where virtual tokens predict it

  /// On a GPU the copies run on its current stream, beside the host's work; a source in pinned memory must live on until
  /// they are done.
  Batch to(const at::Device& device) const;
};

/// The targets of the batch's labels, on the CPU. A label that is negative but not kIgnoreLabel throws ShapeError.
Targets targets_of(const Batch& batch);

}  // namespace lora
