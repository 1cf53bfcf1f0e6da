#include "adapters/residual_start.h"

#include <ATen/ATen.h>

#include <charconv>
#include <string_view>

#include "adapters/low_rank_svd.h"
#include "core/check.h"

// Legend: O outputs, I inputs, R rank.
namespace lora::adapters {
namespace {

LeadingSingular exact(const at::Tensor& weight_OI, int64_t rank) {
  const auto [u, s, vh] = at::linalg_svd(weight_OI, /*full_matrices=*/false);
  return {u.narrow(1, 0, rank), s.narrow(0, 0, rank), vh.narrow(0, 0, rank).t()};
}

StartFactors pissa(const LeadingSingular& leading, double scale) {
  const at::Tensor root_R = (leading.s_R / scale).sqrt();
  return {(leading.v_IR * root_R).t().contiguous(), leading.u_OR * root_R};
}

StartFactors olora(const at::Tensor& weight_OI, int64_t rank) {
  const auto [q, r] = at::linalg_qr(weight_OI);
  return {r.narrow(0, 0, rank).contiguous(), q.narrow(1, 0, rank).contiguous()};
}

void require_fits(const std::string& init, const at::Tensor& weight_OI, int64_t rank, double scale) {
  const int64_t most = std::min(weight_OI.size(0), weight_OI.size(1));
  require<ConfigError>(rank <= most,
                       "[adapters.lora] init_lora_weights {} needs an r of at most the weight's smaller side, {}; "
                       "found {}; lower r",
                       init, most, rank);
  require<ConfigError>(scale > 0, "[adapters.lora] init_lora_weights {} needs a positive lora_alpha; found a scale of {}", init,
                       scale);
}

}  // namespace

std::optional<int64_t> pissa_iterations(const std::string& init) {
  constexpr std::string_view kPrefix = "pissa_niter_";
  constexpr int64_t kMost = 1000;
  if (!init.starts_with(kPrefix)) return std::nullopt;
  int64_t count = 0;
  const char* end = init.data() + init.size();
  const auto [stop, error] = std::from_chars(init.data() + kPrefix.size(), end, count);
  if (error != std::errc() || stop != end || count < 0 || count > kMost) return std::nullopt;
  return count;
}

bool starts_from_weight(const std::string& init) { return init == "pissa" || init == "olora" || pissa_iterations(init); }

StartFactors nearest_factors(const std::string& init, const at::Tensor& matrix_OI, int64_t rank, double scale) {
  require_fits(init, matrix_OI, rank, scale);
  return pissa(exact(matrix_OI, rank), scale);
}

StartFactors start_factors(const std::string& init, const at::Tensor& weight_OI, int64_t rank, double scale) {
  require_fits(init, weight_OI, rank, scale);
  const at::Tensor wide = weight_OI.detach().to(at::kFloat);
  if (init == "olora") return olora(wide, rank);
  const auto iterations = pissa_iterations(init);
  return pissa(iterations ? low_rank_svd(wide, rank, *iterations) : exact(wide, rank), scale);
}

}  // namespace lora::adapters
