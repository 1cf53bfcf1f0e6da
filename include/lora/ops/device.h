#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <string>
#include <string_view>
#include <vector>

namespace lora {

/// Devices that exist here: "cpu", then "cuda:0", ...
std::vector<std::string> existing_devices();

/// auto (the first GPU, else the CPU), cpu, cuda, cuda:N. Throws ConfigError, naming the devices that exist.
c10::Device parse_device(std::string_view name);

/// Seeds every generator that tensors draw from, on the CPU and all GPUs.
void seed_generators(uint64_t seed);

/// State of the default generator of `device` as a byte tensor, and back.
at::Tensor generator_state(const c10::Device& device);
void set_generator_state(const c10::Device& device, const at::Tensor& state);

/// Peak resident memory of the process, in bytes.
uint64_t peak_process_bytes();

/// Peak of what tensors held on a GPU, in bytes; on the CPU that of the process.
uint64_t peak_bytes(const c10::Device& device);

/// For a program's first line, before any tensor: large blocks use large pages where the system has them, and memory that
/// tensors give back stays with the process, since every step asks for the same blocks again.
/// Variables of the environment that say otherwise are left alone.
void prepare_memory();

/// One line about the machine for reports: processor, cores, threads, GPU, LibTorch version.
std::string describe_machine(const c10::Device& device);

}  // namespace lora
