#include "lora/ops/side_stream.h"

#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

// The queues of whatever device LibTorch has, through its own interface: no header of a toolkit is needed.
namespace lora::ops {
namespace {

void make_wait(const c10::Stream& waiting, const c10::Stream& first) {
  c10::Event reached(first.device_type());
  reached.record(first);
  reached.block(waiting);
}

}  // namespace

SideStream::SideStream(const c10::Device& device) : device_(device) {
  if (!device.is_cpu()) stream_ = c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device);
}

void SideStream::wait_for_compute() const {
  if (stream_) make_wait(*stream_, c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
}

void SideStream::let_compute_wait() const {
  if (stream_) make_wait(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_), *stream_);
}

void SideStream::run(const std::function<void()>& work) const {
  const c10::OptionalStreamGuard side(stream_);
  work();
}

}  // namespace lora::ops
