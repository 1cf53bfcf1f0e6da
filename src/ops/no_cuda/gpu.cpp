#include "ops/gpu.h"

#include "core/check.h"

// Without CUDA there is no device to ask.
namespace lora::ops {

std::string gpu_name(const c10::Device& device) {
  fail<ConfigError>("[ops.gpu] {} needs a build with LORA_CUDA=ON; this one has it off", device.str());
}

std::unique_ptr<RecordedWork> record_work(const c10::Device& device, const std::function<void()>&) {
  fail<ConfigError>("[ops.gpu] {} needs a build with LORA_CUDA=ON; this one has it off", device.str());
}

}  // namespace lora::ops
