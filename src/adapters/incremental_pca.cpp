#include "adapters/incremental_pca.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>

#include "adapters/low_rank_svd.h"

namespace lora::adapters {
namespace {

constexpr uint64_t kSeed = 42;
constexpr int64_t kIterations = 4;

/// The largest number of each row becomes positive.
at::Tensor with_fixed_signs(const at::Tensor& rows_RD) {
  const at::Tensor largest_R1 = rows_RD.abs().argmax(1, /*keepdim=*/true);
  return rows_RD * rows_RD.gather(1, largest_R1).sign();
}

}  // namespace

/// Chan et al.'s sums, as far as PEFT's differ in their last bits from plain ones.
void IncrementalPca::add_to_moments(const at::Tensor& rows_ND) {
  const auto count = static_cast<double>(rows_ND.size(0)), all = num_rows_ + count;
  const at::Tensor sum_D = rows_ND.sum(0, /*keepdim=*/false, at::kDouble);
  const at::Tensor former_sum_D = mean_D_.defined() ? mean_D_ * num_rows_ : at::zeros_like(sum_D);
  const at::Tensor centred_ND = rows_ND - sum_D / count;
  at::Tensor squares_D = centred_ND.square().sum(0) - centred_ND.sum(0).square() / count;
  if (variance_D_.defined()) {
    const double ratio = num_rows_ / count;
    squares_D = variance_D_ * num_rows_ + squares_D + ratio / all * (former_sum_D / ratio - sum_D).square();
  }
  mean_D_ = (former_sum_D + sum_D) / all;
  variance_D_ = squares_D / all;
  num_rows_ = all;
}

void IncrementalPca::add(const at::Tensor& rows_ND) {
  const at::NoGradGuard no_grad;
  at::Tensor rows = rows_ND.to(at::kFloat);
  const auto count = static_cast<double>(rows.size(0));
  const double before = num_rows_;
  const at::Tensor former_mean_D = mean_D_;
  add_to_moments(rows);
  if (is_empty()) {
    rows = (rows - mean_D_).to(at::kFloat);
  } else {
    const at::Tensor own_mean_D = rows.mean(0);
    const at::Tensor correction_D = std::sqrt(before / num_rows_ * count) * (former_mean_D - own_mean_D);
    rows = at::cat({(singular_R_.unsqueeze(1) * components_RD_).to(at::kDouble), (rows - own_mean_D).to(at::kDouble),
                    correction_D.unsqueeze(0)});
  }
  const auto found = low_rank_svd(rows, 2 * wanted_, kIterations, at::detail::createCPUGenerator(kSeed));
  components_RD_ = with_fixed_signs(found.v_IR.t()).slice(0, 0, wanted_).contiguous();
  singular_R_ = found.s_R.slice(0, 0, wanted_);
  ratio_R_ = singular_R_.square() / (variance_D_ * num_rows_).sum();
}

}  // namespace lora::adapters
