#include "train/side_copies.h"

#include <ATen/ATen.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <array>
#include <utility>

namespace lora::train {
namespace {

std::array<at::Tensor*, 6> tensors_of(Batch& batch) {
  return {&batch.input_ids_BS,    &batch.labels_BS,          &batch.attention_mask_BS,
          &batch.position_ids_BS, &batch.targets.position_T, &batch.targets.label_T};
}

/// With its targets, in memory that a GPU reads by itself.
Batch pinned(Batch batch) {
  if (batch.labels_BS.defined() && batch.labels_BS.is_cpu() && !batch.targets.defined()) {
    batch.targets = targets_of(batch.labels_BS);
  }
  for (at::Tensor* tensor : tensors_of(batch)) {
    if (tensor->defined() && tensor->is_cpu() && !tensor->is_pinned()) *tensor = tensor->pin_memory();
  }
  return batch;
}

}  // namespace

SideCopies::SideCopies(const at::Device& device)
    : stream_(c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device)) {}

SideCopies::Moving SideCopies::start(data::StepData step) const {
  Moving moving{std::move(step), {}, c10::Event(stream_.device_type())};
  const c10::StreamGuard on_stream(stream_);
  for (Batch& batch : moving.step.micro_batches) {
    moving.originals.push_back(pinned(batch));
    batch = moving.originals.back().to(stream_.device());
  }
  moving.arrived.record(stream_);
  return moving;
}

data::StepData SideCopies::finish(Moving& moving) const {
  const auto current = c10::impl::VirtualGuardImpl(stream_.device_type()).getStream(stream_.device());
  moving.arrived.block(current);
  for (Batch& batch : moving.step.micro_batches) {
    for (at::Tensor* tensor : tensors_of(batch)) {
      if (tensor->defined()) tensor->record_stream(current);  // its memory is not given away while this stream reads it
    }
  }
  return std::move(moving.step);
}

}  // namespace lora::train
