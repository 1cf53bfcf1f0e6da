#include "train/side_copies.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <array>
#include <utility>

namespace lora::train {
namespace {

std::array<at::Tensor*, 8> tensors_of(Batch& batch) {
  return {&batch.input_ids_BS,       &batch.labels_BS,       &batch.attention_mask_BS, &batch.position_ids_BS,
          &batch.targets.position_T, &batch.targets.label_T, &batch.targets.first_F,   &batch.targets.first_label_F};
}

/// With its targets, in memory that a GPU reads by itself.
Batch pinned(Batch batch) {
  if (batch.labels_BS.defined() && batch.labels_BS.is_cpu() && !batch.targets.defined()) {
    batch.targets = targets_of(batch);
  }
  for (at::Tensor* tensor : tensors_of(batch)) {
    if (tensor->defined() && tensor->is_cpu() && !tensor->is_pinned()) *tensor = tensor->pin_memory();
  }
  return batch;
}

}  // namespace

SideCopies::Moving SideCopies::start(data::StepData step) const {
  Moving moving{std::move(step), {}};
  side_.run([&] {
    for (Batch& batch : moving.step.micro_batches) {
      moving.originals.push_back(pinned(batch));
      batch = moving.originals.back().to(device_);
    }
  });
  return moving;
}

data::StepData SideCopies::finish(Moving& moving) const {
  side_.let_compute_wait();
  const auto current = c10::impl::VirtualGuardImpl(device_.type()).getStream(device_);
  for (Batch& batch : moving.step.micro_batches) {
    for (at::Tensor* tensor : tensors_of(batch)) {
      if (tensor->defined()) tensor->record_stream(current);  // its memory is not given away while this stream reads it
    }
  }
  return std::move(moving.step);
}

}  // namespace lora::train
