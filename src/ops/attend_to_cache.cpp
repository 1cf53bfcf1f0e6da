#include <ATen/ATen.h>

#include <cmath>

#include "lora/ops/ops.h"
#include "ops/rows.h"

// Legend: B batch, H heads, G key/value heads, T cached positions, K head size.
namespace lora::ops {
namespace {

/// Heads one after the other, positions without gaps.
bool is_cache_layout(const Tensor& x_BGTK) {
  return x_BGTK.stride(3) == 1 && x_BGTK.stride(2) == x_BGTK.size(3) && x_BGTK.stride(0) == x_BGTK.size(1) * x_BGTK.stride(1);
}

bool has_kernel(const Heads& heads) {
  const bool no_gradient = !at::GradMode::is_enabled() ||
                           !(heads.q_BHSK.requires_grad() || heads.k_BGSK.requires_grad() || heads.v_BGSK.requires_grad());
  return no_gradient && heads.q_BHSK.is_cpu() && rows::supports(heads.q_BHSK) && is_cache_layout(heads.k_BGSK) && is_cache_layout(heads.v_BGSK) &&
         heads.k_BGSK.scalar_type() == heads.q_BHSK.scalar_type();
}

}  // namespace

Tensor attend_to_cache(const Heads& heads, bool fused) {
  const int64_t batch = heads.q_BHSK.size(0), count = heads.q_BHSK.size(1), size = heads.q_BHSK.size(3);
  if (fused && has_kernel(heads)) {
    Tensor out_B1D = at::empty({batch, 1, count * size}, heads.q_BHSK.options());
    rows::attend_one(heads.q_BHSK.contiguous(), heads.k_BGSK, heads.v_BGSK, 1 / std::sqrt(static_cast<double>(size)), out_B1D);
    return out_B1D;
  }
  const Tensor out_BH1K = at::scaled_dot_product_attention(heads.q_BHSK, repeat_heads(heads.k_BGSK, count),
                                                           repeat_heads(heads.v_BGSK, count));
  return out_BH1K.reshape({batch, 1, count * size});
}

}  // namespace lora::ops
