#pragma once

#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include <functional>
#include <optional>

namespace lora::ops {

/// A second queue of a device's work, for copies that run while it computes. The CPU has no queues: everything happens in
/// the order in which it is asked for, and the waits are nothing.
class SideStream {
 public:
  explicit SideStream(const c10::Device& device);

  /// Work given to the side from now on waits for all that the device was given to compute so far.
  void wait_for_compute() const;
  /// What the device is given to compute from now on waits for all work given to the side so far.
  void let_compute_wait() const;
  /// Calls `work` with the side as the current stream of this thread.
  void run(const std::function<void()>& work) const;
  /// For record_stream; nothing on the CPU.
  const std::optional<c10::Stream>& stream() const { return stream_; }

 private:
  c10::Device device_;
  std::optional<c10::Stream> stream_;
};

}  // namespace lora::ops
