#include "lora/ops/memory.h"

#include <ATen/DeviceAccelerator.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

namespace lora {
namespace {

/// Limits of control groups, version 2 and 1, as a process inside sees them; no limit reads as a word or a huge number.
uint64_t limited(uint64_t bytes) {
  for (const char* file : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    uint64_t limit = 0;
    if (std::ifstream(file) >> limit && limit > 0) bytes = std::min(bytes, limit);
  }
  return bytes;
}

}  // namespace

uint64_t total_memory(const c10::Device& device) {
  if (!device.is_cpu()) return at::getDeviceAllocator(device.type())->getMemoryInfo(device.index()).second;
  return limited(static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)));
}

}  // namespace lora
