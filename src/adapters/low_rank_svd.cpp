#include "adapters/low_rank_svd.h"

#include <ATen/ATen.h>

namespace lora::adapters {
namespace {

at::Tensor orthonormal(const at::Tensor& columns) { return std::get<0>(at::linalg_qr(columns)); }

LeadingSingular of_tall(const at::Tensor& tall_OI, int64_t columns, int64_t iterations,
                        const std::optional<at::Generator>& generator) {
  const auto on_cpu = at::TensorOptions(at::kCPU).dtype(tall_OI.scalar_type());
  const at::Tensor random = at::randn({tall_OI.size(1), columns}, generator, on_cpu).to(tall_OI.device());
  at::Tensor basis_OR = orthonormal(tall_OI.mm(random));
  for (int64_t i = 0; i < iterations; ++i) basis_OR = orthonormal(tall_OI.mm(orthonormal(tall_OI.t().mm(basis_OR))));
  const auto [u, s, vh] = at::linalg_svd(basis_OR.t().mm(tall_OI), /*full_matrices=*/false);
  return {basis_OR.mm(u), s, vh.t()};
}

}  // namespace

LeadingSingular low_rank_svd(const at::Tensor& matrix_OI, int64_t columns, int64_t iterations,
                             const std::optional<at::Generator>& generator) {
  if (matrix_OI.size(0) >= matrix_OI.size(1)) return of_tall(matrix_OI, columns, iterations, generator);
  const auto turned = of_tall(matrix_OI.t(), columns, iterations, generator);
  return {turned.v_IR, turned.s_R, turned.u_OR};
}

}  // namespace lora::adapters
