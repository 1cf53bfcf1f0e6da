#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <numeric>

#include "core/check.h"
#include "lora/ops/ops.h"
#include "lora/ops/prefix_attention.h"
#include "ops/apply.h"
#include "ops/rows.h"
#include "ops/sequence_attention.h"

// Legend: B batch, S sequence, N rows (tokens), H heads, G key/value heads, K head size, T rows of
// the rotary tables.
namespace lora::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// How the kernels read qkv (B, S, W), with tables (B or 1, 1, S, K/2), `lengths` and `contexts` (see joined_attention).
JoinedHeads joined_heads(const Tensor& qkv, const Tensor& cos, const Tensor& sin, int64_t heads, int64_t groups,
                         const std::vector<int64_t>& lengths, const std::vector<int64_t>& contexts) {
  const auto table = [](const Tensor& angles) { return angles.defined() ? angles.view({-1, angles.size(-1)}) : Tensor(); };
  JoinedHeads joined{qkv.view({-1, qkv.size(-1)}), table(cos), table(sin), heads, groups, {}};
  const bool own_angles = cos.defined() && (lengths.empty() ? cos.size(0) > 1 : !contexts.empty());
  const std::vector<int64_t> rows(static_cast<size_t>(lengths.empty() ? qkv.size(0) : 0), qkv.size(1));
  int64_t begin = 0;
  for (const int64_t length : lengths.empty() ? rows : lengths) {
    const int64_t context = contexts.empty() ? 0 : contexts[joined.sequences.size()];
    joined.sequences.push_back({begin, length, own_angles ? begin : 0, context});
    begin += length;
  }
  return joined;
}

/// Keeps the projections as they came, the result and the softmax's sums.
struct JoinedAttention : torch::autograd::Function<JoinedAttention> {
  /// Everything contiguous, the tables in the wide type.
  static Tensor forward(AutogradContext* context, const Tensor& qkv, const std::optional<Tensor>& cos,
                        const std::optional<Tensor>& sin, int64_t heads, int64_t groups, const std::vector<int64_t>& lengths,
                        const std::vector<int64_t>& contexts) {
    const Tensor cosine = cos.value_or(Tensor()), sine = sin.value_or(Tensor());
    const JoinedHeads joined = joined_heads(qkv, cosine, sine, heads, groups, lengths, contexts);
    const int64_t tokens = joined.qkv_NW.size(0);
    Tensor out_ND = at::empty({tokens, heads * joined.head_size()}, qkv.options());
    Tensor log_sum_HN = at::empty({heads, tokens}, qkv.options().dtype(rows::wide_type(qkv.scalar_type())));
    attend_sequences(joined, out_ND, log_sum_HN);
    context->save_for_backward({qkv, cosine, sine, out_ND, log_sum_HN});
    context->saved_data["heads"] = heads;
    context->saved_data["groups"] = groups;
    context->saved_data["lengths"] = lengths;
    context->saved_data["contexts"] = contexts;
    return out_ND.view({qkv.size(0), qkv.size(1), -1});
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &qkv = saved[0], &out_ND = saved[3], &log_sum_HN = saved[4];
    const JoinedHeads joined =
        joined_heads(qkv, saved[1], saved[2], context->saved_data["heads"].toInt(), context->saved_data["groups"].toInt(),
                     context->saved_data["lengths"].toIntVector(), context->saved_data["contexts"].toIntVector());
    const Tensor dout_ND = gradients[0].to(out_ND.scalar_type()).reshape(out_ND.sizes()).contiguous();
    const Tensor dqkv = at::empty_like(qkv);
    Tensor dqkv_NW = dqkv.view(joined.qkv_NW.sizes());
    attend_sequences_backward(joined, out_ND, dout_ND, log_sum_HN, dqkv_NW);
    return {dqkv, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

void check_contexts(const std::vector<int64_t>& contexts, const std::vector<int64_t>& lengths) {
  bool fits = contexts.size() == lengths.size();
  for (size_t i = 0; fits && i < lengths.size(); ++i) fits = contexts[i] >= 0 && contexts[i] <= lengths[i];
  require<ShapeError>(fits,
                      "[ops.attention] contexts must be one per sequence and no longer than it; found {} for sequences of {}",
                      fmt::join(contexts, ", "), fmt::join(lengths, ", "));
}

/// The kernels read and write without looking.
void check_joined(const Tensor& qkv, const Tensor& cos, const Tensor& sin, int64_t heads, int64_t groups,
                  const std::vector<int64_t>& lengths, const std::vector<int64_t>& contexts) {
  require<ShapeError>(qkv.dim() == 3 && groups > 0 && heads % groups == 0 && qkv.size(2) % (heads + 2 * groups) == 0,
                      "[ops.attention] projections must be (B, S, (H + 2 G) K) with H a multiple "
                      "of G; found [{}] for {} and {} heads",
                      fmt::join(qkv.sizes(), ", "), heads, groups);
  const int64_t batch = qkv.size(0), size = qkv.size(2) / (heads + 2 * groups);
  int64_t longest = qkv.size(1);
  if (!lengths.empty()) {
    const int64_t tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    longest = *std::ranges::max_element(lengths);
    require<ShapeError>(batch == 1 && *std::ranges::min_element(lengths) > 0 && tokens == qkv.size(1),
                        "[ops.attention] sequences must be one row's, positive and add up to it; found {} tokens "
                        "in {} rows of {}",
                        tokens, batch, qkv.size(1));
  }
  if (!contexts.empty()) {
    check_contexts(contexts, lengths.empty() ? std::vector<int64_t>(static_cast<size_t>(batch), qkv.size(1)) : lengths);
    longest = qkv.size(1);  // every token has its own row of the tables
  }
  if (!cos.defined()) return;
  const bool fits = cos.dim() == 4 && (cos.size(0) == 1 || cos.size(0) == batch) && 2 * cos.size(3) == size &&
                    cos.size(2) >= longest && (cos.size(0) == 1 || cos.size(2) == qkv.size(1));
  require<ShapeError>(fits && sin.defined() && sin.sizes() == cos.sizes(),
                      "[ops.attention] rotary tables must be (1 or {}, 1, {}, {}); found [{}]", batch, longest, size / 2,
                      fmt::join(cos.sizes(), ", "));
}

/// (B, H, S, K) -> (B, S, H K)
Tensor heads_joined(const Tensor& x_BHSK) { return x_BHSK.transpose(1, 2).reshape({x_BHSK.size(0), x_BHSK.size(2), -1}); }

}  // namespace

bool attends_joined(const at::Device& device, at::ScalarType dtype) { return device.is_cpu() && rows::supports(device, dtype); }

Tensor joined_attention(const Tensor& qkv, const Tensor& cos, const Tensor& sin, int64_t num_heads, int64_t num_kv_heads,
                        const std::vector<int64_t>& lengths, const std::vector<int64_t>& contexts) {
  check_joined(qkv, cos, sin, num_heads, num_kv_heads, lengths, contexts);
  const auto table = [&](const Tensor& angles) {
    return angles.defined() ? std::optional(angles.to(rows::wide_type(qkv.scalar_type())).contiguous()) : std::nullopt;
  };
  return applied<JoinedAttention>(qkv.contiguous(), table(cos), table(sin), num_heads, num_kv_heads, lengths, contexts);
}

Tensor repeat_heads(const Tensor& x_BGSK, int64_t num_heads) {
  const int64_t groups = x_BGSK.size(1);
  return groups == num_heads ? x_BGSK : x_BGSK.repeat_interleave(num_heads / groups, 1);
}

Tensor causal_attention(const Heads& heads, bool fused, const std::vector<int64_t>& contexts) {
  const Tensor& q_BHSK = heads.q_BHSK;
  if (q_BHSK.is_cpu() && rows::applies(fused, q_BHSK, "fused_attention")) {
    const Tensor qkv = at::cat({heads_joined(q_BHSK), heads_joined(heads.k_BGSK), heads_joined(heads.v_BGSK)}, -1);
    return joined_attention(qkv, {}, {}, q_BHSK.size(1), heads.k_BGSK.size(1), {}, contexts);
  }
  const int64_t count = q_BHSK.size(1);
  if (!contexts.empty()) {
    check_contexts(contexts, std::vector<int64_t>(static_cast<size_t>(q_BHSK.size(0)), q_BHSK.size(2)));
    return prefix_attention({q_BHSK, repeat_heads(heads.k_BGSK, count), repeat_heads(heads.v_BGSK, count)},
                            contexts_of(contexts, q_BHSK.device()));
  }
  // A GPU's kernels in half precision know shared key/value heads.
  const bool shares_heads = q_BHSK.is_cuda() && q_BHSK.element_size() == 2;
  const Tensor k = shares_heads ? heads.k_BGSK : repeat_heads(heads.k_BGSK, count);
  const Tensor v = shares_heads ? heads.v_BGSK : repeat_heads(heads.v_BGSK, count);
  const Tensor out_BHSK =
      at::scaled_dot_product_attention(q_BHSK, k, v, std::nullopt, /*dropout_p=*/0.0, /*is_causal=*/q_BHSK.size(2) > 1,
                                       /*scale=*/std::nullopt, /*enable_gqa=*/k.size(1) != count);
  return heads_joined(out_BHSK);
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
