// The largest singular values of a matrix, by a randomised search.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace lora::adapters {

/// O rows, I columns, R of the singular values, the largest first.
struct LeadingSingular {
  at::Tensor u_OR, s_R, v_IR;
};

/// The `columns` largest (or as many as the matrix has), with the random numbers of torch.svd_lowrank, drawn on the CPU from
/// `generator` (nothing: LibTorch's own). Source: Halko et al. 2009, algorithms 4.4 and 5.1, as torch.svd_lowrank.
LeadingSingular low_rank_svd(const at::Tensor& matrix_OI, int64_t columns, int64_t iterations,
                             const std::optional<at::Generator>& generator = std::nullopt);

}  // namespace lora::adapters
