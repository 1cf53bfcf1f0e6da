#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "lora/ops/ops.h"
#include "ops/apply.h"
#include "ops/rows.h"

// Legend: B batch, S sequence, H heads, G key/value heads, R = H / G, K head size, T query rows of one block,
// M = B G heads of one product.
namespace lora::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Query rows of one block, and numbers in one block's (M, T, S) tensors: what stays in the caches matters more than
/// the products' size.
constexpr int64_t kBlockQueries = 256;
constexpr int64_t kBlockNumbers = int64_t{1} << 23;

/// (B, H, S, K) -> (B G, R, S, K): the query heads of each key/value head together.
Tensor grouped(const Tensor& x_BHSK, int64_t groups) {
  return x_BHSK.contiguous().view({x_BHSK.size(0) * groups, x_BHSK.size(1) / groups, x_BHSK.size(2), x_BHSK.size(3)});
}

struct Gradients {
  Tensor dq_MRSK, dk_MSK, dv_MSK;
};

/// Gradients of some heads, block of queries by block of queries.
struct HeadsBackward {
  Tensor q_MRSK, k_MSK, v_MSK, out_MRSK, dout_MRSK, log_sum_MRS;
  double scale;

  Gradients run() const {
    const int64_t length = q_MRSK.size(2);
    Gradients sum{at::empty_like(q_MRSK), Tensor(), Tensor()};
    // Keys late in the row are seen by the last block alone: going backwards, each block adds to a prefix.
    for (int64_t end = length; end > 0; end = std::max<int64_t>(0, end - kBlockQueries)) {
      add_block(std::max<int64_t>(0, end - kBlockQueries), end, sum);
    }
    return sum;
  }

  void add_block(int64_t begin, int64_t end, Gradients& sum) const {
    const int64_t queries = end - begin;
    const Tensor q_MTK = rows_of(q_MRSK, begin, end), out_MTK = rows_of(out_MRSK, begin, end);
    const Tensor dout_MTK = rows_of(dout_MRSK, begin, end);
    const Tensor k_MSK_seen = k_MSK.narrow(1, 0, end), v_MSK_seen = v_MSK.narrow(1, 0, end);
    // Scores feed an exponential, and dp a difference of near equals: both in fp32.
    const auto wide = rows::wide_type(q_MTK.scalar_type());
    const Tensor scores_MTS = q_MTK.to(wide).bmm(k_MSK_seen.to(wide).transpose(1, 2));
    const Tensor dp_MTS = dout_MTK.to(wide).bmm(v_MSK_seen.to(wide).transpose(1, 2));
    Tensor p_MTS = at::empty(scores_MTS.sizes(), q_MTK.options()), ds_MTS = at::empty_like(p_MTS);
    const Tensor log_sum_MT = log_sum_MRS.narrow(2, begin, queries).contiguous().view({q_MTK.size(0), -1});
    rows::softmax_backward(scores_MTS, dp_MTS, out_MTK, dout_MTK, log_sum_MT, scale, queries, begin, p_MTS, ds_MTS);

    const Tensor dq_MTK = ds_MTS.bmm(k_MSK_seen);
    sum.dq_MRSK.narrow(2, begin, queries).copy_(dq_MTK.view({dq_MTK.size(0), -1, queries, dq_MTK.size(2)}));
    add(sum.dk_MSK, ds_MTS.transpose(1, 2).bmm(q_MTK), end);
    add(sum.dv_MSK, p_MTS.transpose(1, 2).bmm(dout_MTK), end);
  }

  static Tensor rows_of(const Tensor& x_MRSK, int64_t begin, int64_t end) {
    return x_MRSK.narrow(2, begin, end - begin).contiguous().view({x_MRSK.size(0), -1, x_MRSK.size(3)});
  }

  /// The first block, of the last queries, covers every key; sums of several blocks are kept in the wide type.
  void add(Tensor& sum_MSK, const Tensor& part, int64_t end) const {
    if (!sum_MSK.defined()) {
      sum_MSK = end > kBlockQueries ? part.to(rows::wide_type(part.scalar_type())) : part;
    } else {
      sum_MSK.narrow(1, 0, end).add_(part);
    }
  }
};

struct CausalAttention : torch::autograd::Function<CausalAttention> {
  static Tensor forward(AutogradContext* context, const Tensor& q_BHSK, const Tensor& k_BGSK, const Tensor& v_BGSK) {
    const int64_t heads = q_BHSK.size(1);
    const auto [out_BHSK, log_sum_BHS] = at::_scaled_dot_product_flash_attention_for_cpu(
        q_BHSK, repeat_heads(k_BGSK, heads), repeat_heads(v_BGSK, heads), /*dropout_p=*/0.0, /*is_causal=*/true);
    const Tensor out_BSD = out_BHSK.transpose(1, 2).reshape({q_BHSK.size(0), q_BHSK.size(2), -1});
    context->save_for_backward({q_BHSK, k_BGSK, v_BGSK, out_BSD, log_sum_BHS});
    return out_BSD;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &q_BHSK = saved[0], &k_BGSK = saved[1], &v_BGSK = saved[2];
    const int64_t groups = k_BGSK.size(1), size = q_BHSK.size(3);
    const auto heads_apart = [&](const Tensor& x_BSD) {
      return grouped(x_BSD.reshape({q_BHSK.size(0), q_BHSK.size(2), q_BHSK.size(1), size}).transpose(1, 2), groups);
    };
    const HeadsBackward all{grouped(q_BHSK, groups),
                            k_BGSK.reshape({-1, k_BGSK.size(2), size}),
                            v_BGSK.reshape({-1, v_BGSK.size(2), size}),
                            heads_apart(saved[3]),
                            heads_apart(gradients[0].to(q_BHSK.scalar_type())),
                            saved[4].reshape({k_BGSK.size(0) * groups, -1, q_BHSK.size(2)}),
                            1 / std::sqrt(static_cast<double>(size))};
    const Gradients result = piecewise(all);
    return {result.dq_MRSK.view(q_BHSK.sizes()), result.dk_MSK.view(k_BGSK.sizes()), result.dv_MSK.view(v_BGSK.sizes())};
  }

  /// As many heads at a time as keep a block's tensors small.
  static Gradients piecewise(const HeadsBackward& all) {
    const int64_t count = all.q_MRSK.size(0), length = all.q_MRSK.size(2);
    const int64_t per_head = all.q_MRSK.size(1) * std::min(length, kBlockQueries) * length;
    const int64_t at_once = std::max<int64_t>(1, kBlockNumbers / per_head);
    if (at_once >= count) return typed(all.run(), all.k_MSK);
    Gradients whole{at::empty_like(all.q_MRSK), at::empty_like(all.k_MSK), at::empty_like(all.v_MSK)};
    for (int64_t begin = 0; begin < count; begin += at_once) {
      const int64_t heads = std::min(at_once, count - begin);
      const auto some = [&](const Tensor& x) { return x.narrow(0, begin, heads); };
      const HeadsBackward piece{some(all.q_MRSK),    some(all.k_MSK),       some(all.v_MSK), some(all.out_MRSK),
                                some(all.dout_MRSK), some(all.log_sum_MRS), all.scale};
      const Gradients part = piece.run();
      some(whole.dq_MRSK).copy_(part.dq_MRSK);
      some(whole.dk_MSK).copy_(part.dk_MSK);
      some(whole.dv_MSK).copy_(part.dv_MSK);
    }
    return whole;
  }

  static Gradients typed(Gradients result, const Tensor& like) {
    result.dk_MSK = result.dk_MSK.to(like.scalar_type());
    result.dv_MSK = result.dv_MSK.to(like.scalar_type());
    return result;
  }
};

}  // namespace

Tensor repeat_heads(const Tensor& x_BGSK, int64_t num_heads) {
  const int64_t groups = x_BGSK.size(1);
  return groups == num_heads ? x_BGSK : x_BGSK.repeat_interleave(num_heads / groups, 1);
}

Tensor causal_attention(const Heads& heads, bool fused) {
  const Tensor& q_BHSK = heads.q_BHSK;
  if (q_BHSK.is_cpu() && rows::applies(fused, q_BHSK, "fused_attention")) {
    return applied<CausalAttention>(q_BHSK, heads.k_BGSK, heads.v_BGSK);
  }
  const int64_t count = q_BHSK.size(1);
  // A GPU's kernels in half precision know shared key/value heads.
  const bool shares_heads = q_BHSK.is_cuda() && q_BHSK.element_size() == 2;
  const Tensor k = shares_heads ? heads.k_BGSK : repeat_heads(heads.k_BGSK, count);
  const Tensor v = shares_heads ? heads.v_BGSK : repeat_heads(heads.v_BGSK, count);
  const Tensor out_BHSK = at::scaled_dot_product_attention(q_BHSK, k, v, {}, /*dropout_p=*/0.0,
                                                           /*is_causal=*/q_BHSK.size(2) > 1, /*scale=*/std::nullopt,
                                                           /*enable_gqa=*/k.size(1) != count);
  return out_BHSK.transpose(1, 2).reshape({q_BHSK.size(0), q_BHSK.size(2), -1});
}

Tensor attention_by_bounds(const Heads& heads, const Tensor& bounds, int64_t longest) {
  // (1, H, S, K) -> (S, H, K)
  const auto tokens_first = [](const Tensor& x_1HSK) { return x_1HSK.squeeze(0).transpose(0, 1); };
  const Tensor q_SHK = tokens_first(heads.q_BHSK);
  const auto results = at::_flash_attention_forward(q_SHK, tokens_first(heads.k_BGSK), tokens_first(heads.v_BGSK), bounds, bounds,
                                                    longest, longest, /*dropout_p=*/0.0, /*is_causal=*/true,
                                                    /*return_debug_mask=*/false);
  return std::get<0>(results).reshape({1, q_SHK.size(0), -1});
}

bool attends_by_bounds(const at::Device& device, at::ScalarType dtype, int64_t head_size) {
  const bool is_half = dtype == at::kBFloat16 || dtype == at::kHalf;
  return device.is_cuda() && is_half && head_size % 8 == 0 && head_size <= 256 && at::globalContext().userEnabledFlashSDP();
}

}  // namespace lora::ops
