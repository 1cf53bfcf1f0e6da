#include <ATen/ATen.h>

#include <cmath>

#include "lora/ops/ops.h"
#include "ops/rows.h"

// Legend: B batch, H heads, G key/value heads, S queries, T cached positions, K head size.
namespace lora::ops {
namespace {

/// Heads one after the other, positions without gaps.
bool is_cache_layout(const Tensor& x_BGTK) {
  return x_BGTK.stride(3) == 1 && x_BGTK.stride(2) == x_BGTK.size(3) && x_BGTK.stride(0) == x_BGTK.size(1) * x_BGTK.stride(1);
}

/// Many queries are better served by a kernel that works in blocks.
bool has_kernel(const Heads& heads) {
  const bool no_gradient = !at::GradMode::is_enabled() ||
                           !(heads.q_BHSK.requires_grad() || heads.k_BGSK.requires_grad() || heads.v_BGSK.requires_grad());
  return no_gradient && heads.q_BHSK.is_cpu() && rows::supports(heads.q_BHSK) && heads.q_BHSK.size(2) <= rows::kFewRows &&
         is_cache_layout(heads.k_BGSK) && is_cache_layout(heads.v_BGSK) &&
         heads.k_BGSK.scalar_type() == heads.q_BHSK.scalar_type() && heads.v_BGSK.scalar_type() == heads.q_BHSK.scalar_type();
}

/// Which of T positions the last S may look at, (S, T); nothing when S is 1: all.
std::optional<Tensor> seen_by_last(int64_t queries, int64_t positions, const Tensor& like) {
  if (queries == 1) return std::nullopt;
  return at::ones({queries, positions}, like.options().dtype(at::kBool)).tril(positions - queries);
}

}  // namespace

Tensor attend_to_cache(const Heads& heads, bool fused) {
  const auto& q_BHSK = heads.q_BHSK;
  const int64_t batch = q_BHSK.size(0), count = q_BHSK.size(1), queries = q_BHSK.size(2), size = q_BHSK.size(3);
  if (fused && has_kernel(heads)) {
    Tensor out_BSD = at::empty({batch, queries, count * size}, q_BHSK.options());
    rows::attend_to_cache(q_BHSK.contiguous(), heads.k_BGSK, heads.v_BGSK, 1 / std::sqrt(static_cast<double>(size)), out_BSD);
    return out_BSD;
  }
  const auto mask = seen_by_last(queries, heads.k_BGSK.size(2), q_BHSK);
  const Tensor out_BHSK =
      at::scaled_dot_product_attention(q_BHSK, repeat_heads(heads.k_BGSK, count), repeat_heads(heads.v_BGSK, count), mask);
  return out_BHSK.transpose(1, 2).reshape({batch, queries, count * size});
}

}  // namespace lora::ops
