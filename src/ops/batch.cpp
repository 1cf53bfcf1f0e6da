#include "lora/ops/batch.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/check.h"

namespace lora {
namespace {

/// Where the sequences of a packed row begin.
at::Tensor starts_of(const std::vector<int64_t>& lengths) {
  at::Tensor starts = at::empty({static_cast<int64_t>(lengths.size())}, at::kLong);
  int64_t start = 0;
  for (size_t i = 0; i < lengths.size(); start += lengths[i++]) starts.mutable_data_ptr<int64_t>()[i] = start;
  return starts;
}

/// Of each sequence.
at::Tensor first_labels(const Batch& batch) {
  if (batch.segment_lengths.empty()) return batch.labels_BS.select(1, 0);
  return batch.labels_BS.flatten().index_select(0, starts_of(batch.segment_lengths));
}

/// Labels of what follows each position that has a successor; kIgnoreLabel where another sequence begins.
at::Tensor next_labels(const Batch& batch) {
  const at::Tensor next = batch.labels_BS.slice(1, 1).reshape(-1);
  if (batch.segment_lengths.size() < 2) return next;
  return next.index_fill(0, starts_of(batch.segment_lengths).slice(0, 1) - 1, kIgnoreLabel);
}

at::Tensor positions_with_label(const at::Tensor& labels_N) { return (labels_N != kIgnoreLabel).nonzero().squeeze(1); }

/// The largest of the labels, -1 without any.
int64_t checked_largest(const at::Tensor& labels) {
  if (labels.numel() == 0) return -1;
  const auto [least, largest] = labels.aminmax();
  require<ShapeError>(least.item<int64_t>() >= 0, "[batch] labels must be token numbers or {}; found {}", kIgnoreLabel,
                      least.item<int64_t>());
  return largest.item<int64_t>();
}

}  // namespace

Batch Batch::to(const at::Device& device) const {
  // Copies to a GPU may overlap with the host's work; a copy to the CPU must have arrived.
  const bool non_blocking = device.is_cuda();
  Batch moved = *this;
  if (device.is_cuda() && labels_BS.defined() && labels_BS.is_cpu() && !targets.defined()) moved.targets = targets_of(*this);
  if (device.is_cuda() && input_ids_BS.is_cpu()) moved.host_ids_BS = input_ids_BS;
  for (at::Tensor* tensor :
       {&moved.input_ids_BS, &moved.labels_BS, &moved.attention_mask_BS, &moved.position_ids_BS, &moved.targets.position_T,
        &moved.targets.label_T, &moved.targets.first_F, &moved.targets.first_label_F}) {
    if (tensor->defined()) *tensor = tensor->to(device, non_blocking);
  }
  return moved;
}

Targets targets_of(const Batch& batch) {
  const at::Tensor next = next_labels(batch), first = first_labels(batch);
  Targets targets;
  targets.position_T = positions_with_label(next);
  targets.label_T = next.index_select(0, targets.position_T);
  targets.first_F = positions_with_label(first);
  targets.first_label_F = first.index_select(0, targets.first_F);
  targets.largest = std::max(checked_largest(targets.label_T), checked_largest(targets.first_label_F));
  return targets;
}

}  // namespace lora
