#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <span>

#include "lora/nn/causal_lm.h"
#include "lora/ops/batch.h"

namespace lora::train {

/// Floating-point operations per second of large matrix products in `dtype` on `device` with the threads in use,
/// measured now (a tenth of a second on a CPU): what a step could at best run at.
double matmul_flops_per_second(const at::Device& device, at::ScalarType dtype);

/// Operations of one training step that its result needs, with nothing computed twice: per token and weight of a linear
/// layer two forward, two for the gradient of the input and, where the weight is trained, two for its own; the head for
/// targets alone; causal attention within each row, 2 s^2 h forward and twice that backward. Adapters, norms and
/// whatever else is small are left out. s: real tokens of a row, on average; h: width of all heads.
double step_flops(nn::CausalLMImpl& model, std::span<const Batch> micro_batches);

}  // namespace lora::train
