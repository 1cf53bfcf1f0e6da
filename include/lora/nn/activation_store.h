#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <mutex>
#include <vector>

#include "lora/ops/side_stream.h"

namespace lora::nn {

/// What recomputation keeps for the backward pass, in host memory (pinned, where the device is a GPU): it goes there while
/// the device computes on, and what was put before comes back while the backward pass is busy with what was put after.
/// Owned by the model; values come back bit for bit. Thread-safe.
class ActivationStore {
 public:
  /// Tensors that were put together. They leave the host's memory with the last owner.
  struct Kept;

  explicit ActivationStore(const at::Device& device) : side_(device) {}
  ActivationStore(const ActivationStore&) = delete;
  ActivationStore& operator=(const ActivationStore&) = delete;

  /// Begins to copy tensors of the device to the host.
  std::shared_ptr<Kept> put(const std::vector<at::Tensor>& tensors);
  /// The tensors again, on their device; sends for those that were put just before.
  std::vector<at::Tensor> take(Kept& kept);

 private:
  void send_for(Kept& kept);

  ops::SideStream side_;
  std::mutex mutex_;
  std::weak_ptr<Kept> last_;
};

}  // namespace lora::nn
