#pragma once

#include <c10/core/Device.h>

#include <cstdint>

namespace lora {

/// Memory that a process here may use: the device's own, or on the CPU the machine's, less where a control group limits
/// it. In bytes, whatever is in use now.
uint64_t total_memory(const c10::Device& device);

}  // namespace lora
