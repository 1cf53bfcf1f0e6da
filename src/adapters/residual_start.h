// Factors that start as a part of the base weight: PiSSA and OLoRA.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

namespace lora::adapters {

struct StartFactors {
  at::Tensor a_RI, b_OR;
};

/// Whether an init of LoraOptions is one of these.
bool starts_from_weight(const std::string& init);
/// N of "pissa_niter_N"; nothing for another init.
std::optional<int64_t> pissa_iterations(const std::string& init);

/// The factors that `init` takes from a weight (out, in), whose update is scale * B A. pissa: the `rank` largest singular
/// values and vectors, exactly or by a randomised search; olora: the first columns of Q and rows of R. Computed in fp32.
/// Throws ConfigError when the rank is more than the weight has. Source: PEFT 0.21 LoraLayer.pissa_init, olora_init.
StartFactors start_factors(const std::string& init, const at::Tensor& weight_OI, int64_t rank, double scale);

/// The factors whose scale * B A is the nearest of this rank to a matrix (out, in); fp32. `init` opens the messages of
/// ConfigError for a rank that the matrix has not and a scale that is not positive.
StartFactors nearest_factors(const std::string& init, const at::Tensor& matrix_OI, int64_t rank, double scale);

}  // namespace lora::adapters
