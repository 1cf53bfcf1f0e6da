#include "ops/gpu.h"

#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <map>

namespace lora::ops {
namespace {

/// The one on which all work of a device is recorded: libraries keep a workspace for every stream.
c10::cuda::CUDAStream recording_stream(const c10::Device& device) {
  static std::map<c10::DeviceIndex, c10::cuda::CUDAStream> streams;
  const auto fresh = [&] { return c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index()); };
  const auto found = streams.find(device.index());
  return found != streams.end() ? found->second : streams.emplace(device.index(), fresh()).first->second;
}

class Graph : public RecordedWork {
 public:
  Graph(const c10::Device& device, const std::function<void()>& work) : device_(device) {
    const c10::cuda::CUDAGuard guard(device);
    const auto own_stream = c10::cuda::getCurrentCUDAStream();
    const auto stream = recording_stream(device);
    // Memory that usual steps left behind would stand beside the records'.
    own_stream.synchronize();
    c10::cuda::CUDACachingAllocator::emptyCache();
    {
      const c10::cuda::CUDAStreamGuard on_stream(stream);
      record(work);
    }
    stream.synchronize();
  }

  void run() override {
    const c10::cuda::CUDAGuard guard(device_);
    graph_.replay();
  }

 private:
  /// Records share their memory: one's results are used before another runs. Other threads may pin memory meanwhile.
  void record(const std::function<void()>& work) {
    static const auto pool = at::cuda::graph_pool_handle();
    graph_.capture_begin(pool, cudaStreamCaptureModeThreadLocal);
    try {
      work();
    } catch (...) {
      try {
        graph_.capture_end();
      } catch (const c10::Error&) {  // the first error says more
      }
      static_cast<void>(cudaGetLastError());
      throw;
    }
    graph_.capture_end();
  }

  c10::Device device_;
  at::cuda::CUDAGraph graph_;
};

}  // namespace

std::string gpu_name(const c10::Device& device) { return at::cuda::getDeviceProperties(device.index())->name; }

std::unique_ptr<RecordedWork> record_work(const c10::Device& device, const std::function<void()>& work) {
  return std::make_unique<Graph>(device, work);
}

}  // namespace lora::ops
