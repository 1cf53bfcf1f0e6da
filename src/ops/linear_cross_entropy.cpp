#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include "lora/ops/autocast.h"
#include "lora/ops/ops.h"

// Legend: N rows, C rows of one chunk, D model, V vocabulary.
namespace lora::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Logits of one chunk hold at most this many numbers (16 MiB in fp32), but never fewer than 64 rows: below that the
/// matrix products slow down.
constexpr int64_t kChunkLogits = int64_t{1} << 22;
constexpr int64_t kLeastChunkRows = 64;

struct LinearCrossEntropySum : torch::autograd::Function<LinearCrossEntropySum> {
  static Tensor forward(AutogradContext* context, const Tensor& hidden_ND, const Tensor& weight_VD,
                        const Tensor& labels_N, bool with_gradient) {
    const auto dtype = compute_dtype(hidden_ND.device().type(), hidden_ND.scalar_type());
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const auto wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
    const bool hidden_gradient = with_gradient && hidden_ND.requires_grad();
    const bool weight_gradient = with_gradient && weight_VD.requires_grad();
    const Tensor weight = weight_VD.to(dtype);

    Tensor loss = at::zeros({}, hidden_ND.options().dtype(wide));
    const Tensor dhidden_ND = hidden_gradient ? at::empty(hidden_ND.sizes(), hidden_ND.options().dtype(dtype)) : Tensor();
    const Tensor dweight_VD = weight_gradient ? at::zeros(weight_VD.sizes(), weight_VD.options().dtype(wide)) : Tensor();

    const int64_t rows = hidden_ND.size(0);
    const int64_t chunk_rows = std::max(kLeastChunkRows, kChunkLogits / weight_VD.size(0));
    for (int64_t begin = 0; begin < rows; begin += chunk_rows) {
      const int64_t end = std::min(rows, begin + chunk_rows);
      const Tensor hidden_CD = hidden_ND.slice(0, begin, end).to(dtype);
      const Tensor labels_C1 = labels_N.slice(0, begin, end).unsqueeze(1);
      Tensor logits_CV = hidden_CD.mm(weight.t()).to(wide);
      const Tensor log_sum_C1 = logits_CV.logsumexp(1, /*keepdim=*/true);
      loss += (log_sum_C1 - logits_CV.gather(1, labels_C1)).sum();
      if (!hidden_gradient && !weight_gradient) continue;
      // softmax - one-hot, in the logits' own memory
      logits_CV.sub_(log_sum_C1).exp_();
      logits_CV.scatter_add_(1, labels_C1, at::full_like(labels_C1, -1, logits_CV.options()));
      const Tensor dlogits_CV = logits_CV.to(dtype);
      if (hidden_gradient) dhidden_ND.slice(0, begin, end).copy_(dlogits_CV.mm(weight));
      if (weight_gradient) dweight_VD.add_(dlogits_CV.t().mm(hidden_CD));
    }
    context->save_for_backward({dhidden_ND, dweight_VD});
    context->saved_data["hidden_type"] = static_cast<int64_t>(hidden_ND.scalar_type());
    context->saved_data["weight_type"] = static_cast<int64_t>(weight_VD.scalar_type());
    return loss;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto scaled = [&](const Tensor& gradient, const char* type) {
      if (!gradient.defined()) return Tensor();
      const Tensor wide = gradient * gradients[0];
      return wide.to(static_cast<at::ScalarType>(context->saved_data[type].toInt()));
    };
    return {scaled(saved[0], "hidden_type"), scaled(saved[1], "weight_type"), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor linear_cross_entropy_sum(const Tensor& hidden_ND, const Tensor& weight_VD, const Tensor& labels_N) {
  return LinearCrossEntropySum::apply(hidden_ND, weight_VD, labels_N, at::GradMode::is_enabled());
}

}  // namespace lora::ops
