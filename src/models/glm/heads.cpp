#include "models/glm/heads.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ops/apply.h"

namespace lora::glm {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Queries and keys of the fused layout, (N, H, 2, halves, pairs, K/4), seen as (N, 2, H, pairs, halves, K/4).
Tensor turned_of_fused(const Tensor& fused, int64_t heads) {
  const int64_t size = fused.size(-1) / (3 * heads);
  return fused.view({-1, heads, 3, size}).narrow(2, 0, 2).unflatten(3, {2, 2, size / 4}).permute({0, 2, 1, 4, 3, 5});
}
Tensor values_of_fused(const Tensor& fused, int64_t heads) {
  return fused.view({-1, heads, 3, fused.size(-1) / (3 * heads)}).select(2, 2);
}

/// The same of the layout apart.
Tensor turned_of_apart(const Tensor& apart, int64_t heads) {
  const int64_t size = apart.size(-1) / (3 * heads);
  return apart.view({-1, 3, heads, size}).narrow(1, 0, 2).unflatten(3, {2, 2, size / 4});
}
Tensor values_of_apart(const Tensor& apart, int64_t heads) {
  return apart.view({-1, 3, heads, apart.size(-1) / (3 * heads)}).select(1, 2);
}

/// One pass over memory each way.
struct HeadsApart : torch::autograd::Function<HeadsApart> {
  static Tensor forward(AutogradContext* context, const Tensor& fused, int64_t heads) {
    context->saved_data["heads"] = heads;
    Tensor apart = at::empty_like(fused);
    turned_of_apart(apart, heads).copy_(turned_of_fused(fused, heads));
    values_of_apart(apart, heads).copy_(values_of_fused(fused, heads));
    return apart;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const int64_t heads = context->saved_data["heads"].toInt();
    const Tensor dapart = gradients[0].contiguous();
    Tensor dfused = at::empty_like(dapart);
    turned_of_fused(dfused, heads).copy_(turned_of_apart(dapart, heads));
    values_of_fused(dfused, heads).copy_(values_of_apart(dapart, heads));
    return {dfused, Tensor()};
  }
};

}  // namespace

Tensor heads_apart(const Tensor& fused, int64_t num_heads) { return ops::applied<HeadsApart>(fused.contiguous(), num_heads); }

Tensor in_pairs(const Tensor& k_HPK) { return k_HPK.unflatten(2, {2, 2, k_HPK.size(2) / 4}).transpose(2, 3).flatten(2); }

}  // namespace lora::glm
