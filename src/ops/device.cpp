#include "lora/ops/device.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <malloc.h>
#include <sys/resource.h>
#include <torch/version.h>

#include <charconv>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>
#include <thread>

#include "core/check.h"
#include "ops/gpu.h"

namespace lora {
namespace {

int64_t num_gpus() { return at::globalContext().hasCUDA() ? static_cast<int64_t>(at::detail::getCUDAHooks().deviceCount()) : 0; }

at::Generator generator_of(const c10::Device& device) {
  if (device.is_cuda()) return at::globalContext().defaultGenerator(device);
  return at::detail::getDefaultCPUGenerator();
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const auto colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

}  // namespace

std::vector<std::string> existing_devices() {
  std::vector<std::string> names{"cpu"};
  for (int64_t i = 0; i < num_gpus(); ++i) names.push_back(fmt::format("cuda:{}", i));
  return names;
}

c10::Device parse_device(std::string_view name) {
  const int64_t gpus = num_gpus();
  if (name == "cpu" || (name == "auto" && gpus == 0)) return c10::Device(c10::kCPU);
  int64_t index = -1;
  if (name == "auto" || name == "cuda") {
    index = 0;
  } else if (name.starts_with("cuda:")) {
    const auto digits = name.substr(5);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
    if (error != std::errc() || end != digits.data() + digits.size()) index = -1;
  }
  require<ConfigError>(index >= 0 && index < gpus, "[device] a device must exist here; found \"{}\"; devices are: {}", name,
                       fmt::join(existing_devices(), ", "));
  return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index));
}

void seed_generators(uint64_t seed) {
  auto cpu = at::detail::getDefaultCPUGenerator();
  cpu.set_current_seed(seed);
  for (int64_t i = 0; i < num_gpus(); ++i) {
    auto gpu = generator_of(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(i)));
    gpu.set_current_seed(seed);
  }
}

at::Tensor generator_state(const c10::Device& device) { return generator_of(device).get_state(); }

void set_generator_state(const c10::Device& device, const at::Tensor& state) {
  auto generator = generator_of(device);
  generator.set_state(state);
}

uint64_t peak_process_bytes() {
  // getrusage also counts what the process that started this one had then.
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::strtoull(line.c_str() + 6, nullptr, 10) * 1024;
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

uint64_t peak_bytes(const c10::Device& device) {
  if (!device.is_cuda()) return peak_process_bytes();
  const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return static_cast<uint64_t>(stats.allocated_bytes[kAll].peak);
}

void prepare_memory() {
  ::setenv("THP_MEM_ALLOC_ENABLE", "1", /*overwrite=*/0);
#ifdef __GLIBC__
  constexpr int kLeastFreeKept = 64 << 20;
  if (std::getenv("MALLOC_MMAP_MAX_") == nullptr) ::mallopt(M_MMAP_MAX, 0);
  if (std::getenv("MALLOC_TOP_PAD_") == nullptr) ::mallopt(M_TOP_PAD, kLeastFreeKept);
  if (std::getenv("MALLOC_TRIM_THRESHOLD_") == nullptr) ::mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
#endif
}

std::string describe_machine(const c10::Device& device) {
  const std::string gpu = device.is_cuda() ? fmt::format(" ({})", ops::gpu_name(device)) : "";
  return fmt::format("{}, {} cores, {} threads, device {}{}, LibTorch {}", processor_name(), std::thread::hardware_concurrency(),
                     at::get_num_threads(), device.str(), gpu, TORCH_VERSION);
}

}  // namespace lora
