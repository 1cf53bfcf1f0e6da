// What only LibTorch's CUDA half can say or do. Twins: cuda/gpu.cpp, and no_cuda/gpu.cpp for a build without it.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <memory>
#include <string>

namespace lora::ops {

/// As its maker calls it.
std::string gpu_name(const c10::Device& device);

/// Work of a GPU, recorded once and run again and again as one launch: on the same memory, with the same shapes.
class RecordedWork {
 public:
  virtual ~RecordedWork() = default;
  /// Runs it on the device's current stream.
  virtual void run() = 0;
};

/// Records what `work` starts on the device (on any thread that autograd uses for it), which is not run. It must not wait
/// for the device nor free or pin memory by hand. Tensors made in it keep their memory for the record. Throws c10::Error
/// when something in it cannot be recorded.
std::unique_ptr<RecordedWork> record_work(const c10::Device& device, const std::function<void()>& work);

}  // namespace lora::ops
