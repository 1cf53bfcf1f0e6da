#include "lora/ops/prefix_attention.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "core/check.h"

namespace lora::ops {

Contexts contexts_of(const std::vector<int64_t>& contexts, const at::Device& device) {
  require<ShapeError>(!contexts.empty() && *std::ranges::min_element(contexts) >= 0,
                      "[ops.prefix_attention] every row must have a context; found {}", fmt::join(contexts, ", "));
  // A first token that sees itself is what causal attention is without a context.
  std::vector<int64_t> shown;
  for (const int64_t context : contexts) shown.push_back(std::max<int64_t>(context, 1));
  const int64_t longest = *std::ranges::max_element(shown);
  if (*std::ranges::min_element(shown) == longest) return {longest, Tensor()};
  return {longest, (at::arange(longest) < at::tensor(shown, at::kLong).unsqueeze(1)).to(device)};
}

Tensor prefix_attention(const Heads& heads, const Contexts& contexts) {
  const int64_t places = contexts.longest, length = heads.q_BHSK.size(2);
  require<ShapeError>(places <= length, "[ops.prefix_attention] a context must be within its row of {} places; found {}", length,
                      places);
  const auto first = [&](const Tensor& x_BHSK) { return x_BHSK.narrow(2, 0, places); };
  const bool is_masked = contexts.within_BP.defined();
  const auto mask = is_masked ? std::optional(contexts.within_BP.unsqueeze(1).unsqueeze(1)) : std::nullopt;
  Tensor mutual_BHPK = at::scaled_dot_product_attention(first(heads.q_BHSK), first(heads.k_BGSK), first(heads.v_BGSK), mask);
  const auto joined = [](const Tensor& x_BHSK) { return x_BHSK.transpose(1, 2).flatten(2); };
  if (places == length && !is_masked) return joined(mutual_BHPK);
  const Tensor causal_BHSK =
      at::scaled_dot_product_attention(heads.q_BHSK, heads.k_BGSK, heads.v_BGSK, std::nullopt, /*dropout_p=*/0.0,
                                       /*is_causal=*/true);
  if (is_masked) mutual_BHPK = at::where(contexts.within_BP.unsqueeze(1).unsqueeze(3), mutual_BHPK, first(causal_BHSK));
  return joined(at::cat({mutual_BHPK, causal_BHSK.slice(2, places)}, 2));
}

}  // namespace lora::ops
