#include "lora/ops/batch.h"

#include <ATen/ATen.h>

#include "core/check.h"

namespace lora {

Batch Batch::to(const at::Device& device) const {
  // Copies to a GPU may overlap with the host's work; a copy to the CPU must have arrived.
  const bool non_blocking = device.is_cuda();
  Batch moved = *this;
  if (device.is_cuda() && labels_BS.defined() && labels_BS.is_cpu() && !targets.defined()) moved.targets = targets_of(labels_BS);
  if (device.is_cuda() && input_ids_BS.is_cpu()) moved.host_ids_BS = input_ids_BS;
  for (at::Tensor* tensor : {&moved.input_ids_BS, &moved.labels_BS, &moved.attention_mask_BS, &moved.position_ids_BS,
                             &moved.targets.position_T, &moved.targets.label_T}) {
    if (tensor->defined()) *tensor = tensor->to(device, non_blocking);
  }
  return moved;
}

Targets targets_of(const at::Tensor& labels_BS) {
  const at::Tensor next_labels = labels_BS.slice(1, 1).reshape(-1);
  Targets targets;
  targets.position_T = (next_labels != kIgnoreLabel).nonzero().squeeze(1);
  targets.label_T = next_labels.index_select(0, targets.position_T);
  if (targets.label_T.numel() == 0) return targets;
  const auto [least, largest] = targets.label_T.aminmax();
  require<ShapeError>(least.item<int64_t>() >= 0, "[batch] labels must be token numbers or {}; found {}", kIgnoreLabel,
                      least.item<int64_t>());
  targets.largest = largest.item<int64_t>();
  return targets;
}

}  // namespace lora
