#include "lora/ops/batch.h"

namespace lora {

Batch Batch::to(const at::Device& device) const {
  // Copies to a GPU may overlap with the host's work; a copy to the CPU must have arrived.
  const bool non_blocking = device.is_cuda();
  Batch moved = *this;
  for (at::Tensor* tensor :
       {&moved.input_ids_BS, &moved.labels_BS, &moved.attention_mask_BS, &moved.position_ids_BS}) {
    if (tensor->defined()) *tensor = tensor->to(device, non_blocking);
  }
  return moved;
}

}  // namespace lora
