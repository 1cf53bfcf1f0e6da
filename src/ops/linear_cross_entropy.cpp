#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/check.h"
#include "lora/ops/autocast.h"
#include "lora/ops/ops.h"
#include "ops/rows.h"

// Legend: N rows, C rows of one chunk, D model, V vocabulary.
namespace lora::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Logits of one chunk hold at most this many numbers (16 MiB in bf16), but never fewer than 64 rows: below that the
/// matrix products slow down. The last chunk is filled up to a multiple of so many rows, since every new shape costs
/// the half-precision products a plan of their own.
constexpr int64_t kChunkLogits = int64_t{1} << 23;
/// A GPU wants larger products (128 MiB in bf16).
constexpr int64_t kGpuChunkLogits = int64_t{1} << 26;
constexpr int64_t kLeastChunkRows = 64;

/// Twice that where the weight trains: each further chunk reads and writes its whole gradient.
constexpr int64_t kTrainedChunkLogits = 2 * kChunkLogits;

/// Cross-entropy of one chunk: the losses' sum; `logits_CV` becomes softmax - one-hot when `gradient` is set.
Tensor chunk_loss(Tensor& logits_CV, const Tensor& labels_C, bool gradient, bool fused, at::ScalarType wide) {
  if (rows::applies(fused, logits_CV, "fused_loss")) {
    Tensor losses_C = at::empty(labels_C.sizes(), logits_CV.options().dtype(wide));
    rows::cross_entropy(logits_CV, labels_C, gradient, losses_C);
    return losses_C.sum();
  }
  const Tensor ignored_C1 = labels_C.lt(0).unsqueeze(1), labels_C1 = labels_C.clamp_min(0).unsqueeze(1);
  Tensor wide_CV = logits_CV.to(wide);
  const Tensor log_sum_C1 = wide_CV.logsumexp(1, /*keepdim=*/true);
  const Tensor loss = (log_sum_C1 - wide_CV.gather(1, labels_C1)).masked_fill_(ignored_C1, 0).sum();
  if (!gradient) return loss;
  wide_CV.sub_(log_sum_C1).exp_();
  wide_CV.scatter_add_(1, labels_C1, at::full_like(labels_C1, -1, wide_CV.options()));
  wide_CV.masked_fill_(ignored_C1, 0);
  logits_CV = wide_CV.to(logits_CV.scalar_type());
  return loss;
}

/// Rows begin .. end in `dtype`, followed by rows of zeros up to a multiple of kLeastChunkRows in half precision.
Tensor filled_chunk(const Tensor& hidden_ND, int64_t begin, int64_t end, at::ScalarType dtype) {
  const Tensor chunk_CD = hidden_ND.slice(0, begin, end).to(dtype);
  const int64_t missing = (kLeastChunkRows - (end - begin) % kLeastChunkRows) % kLeastChunkRows;
  const bool plans_by_shape = hidden_ND.device().is_cpu() && (dtype == at::kBFloat16 || dtype == at::kHalf);
  return missing == 0 || !plans_by_shape ? chunk_CD : at::constant_pad_nd(chunk_CD, {0, 0, 0, missing});
}

/// A gradient of one part stays as it is; the sum of several is kept in the wide type. Added piece by piece, since a part
/// of another type is copied to the sum's type first.
void add_part(Tensor& sum, const Tensor& part, at::ScalarType wide) {
  if (!sum.defined()) {
    sum = part;
    return;
  }
  constexpr int64_t kRowsAtOnce = 4096;
  sum = sum.to(wide);
  for (int64_t row = 0; row < sum.size(0); row += kRowsAtOnce) {
    sum.slice(0, row, row + kRowsAtOnce).add_(part.slice(0, row, row + kRowsAtOnce));
  }
}

struct LinearCrossEntropySum : torch::autograd::Function<LinearCrossEntropySum> {
  static Tensor forward(AutogradContext* context, const Tensor& hidden_ND, const Tensor& weight_VD, const Tensor& labels_N,
                        const std::shared_ptr<const PackedWeight>& packed, bool fused, bool with_gradient) {
    const auto dtype = compute_dtype(hidden_ND.device().type(), hidden_ND.scalar_type());
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const auto wide = rows::wide_type(dtype);
    const bool hidden_gradient = with_gradient && hidden_ND.requires_grad();
    const bool weight_gradient = with_gradient && weight_VD.requires_grad();
    const bool uses_packed = packed != nullptr && packed->dtype() == dtype && !weight_gradient;
    const Tensor weight = uses_packed ? Tensor() : weight_VD.to(dtype);

    Tensor loss = at::zeros({}, hidden_ND.options().dtype(wide));
    const Tensor dhidden_ND = hidden_gradient ? at::empty(hidden_ND.sizes(), hidden_ND.options().dtype(dtype)) : Tensor();
    Tensor dweight_VD;

    const int64_t rows = hidden_ND.size(0);
    const int64_t on_cpu = weight_gradient ? kTrainedChunkLogits : kChunkLogits;
    const int64_t chunk_logits = hidden_ND.is_cuda() ? kGpuChunkLogits : on_cpu;
    const int64_t chunk_rows = std::max(kLeastChunkRows, chunk_logits / weight_VD.size(0) / kLeastChunkRows * kLeastChunkRows);
    for (int64_t begin = 0; begin < rows; begin += chunk_rows) {
      const int64_t end = std::min(rows, begin + chunk_rows), count = end - begin;
      const Tensor hidden_CD = filled_chunk(hidden_ND, begin, end, dtype);
      const Tensor all_logits_CV = uses_packed ? packed->times(hidden_CD) : hidden_CD.mm(weight.t());
      Tensor logits_CV = all_logits_CV.slice(0, 0, count);
      const bool gradient = hidden_gradient || weight_gradient;
      loss += chunk_loss(logits_CV, labels_N.slice(0, begin, end), gradient, fused, wide);
      if (hidden_gradient) {
        // The filling rows' gradients are whatever they are: nobody reads them.
        const bool in_place = logits_CV.data_ptr() == all_logits_CV.data_ptr();
        const Tensor dlogits = in_place ? all_logits_CV : logits_CV;
        const Tensor dchunk = uses_packed ? packed->times_transposed(dlogits) : dlogits.mm(weight);
        dhidden_ND.slice(0, begin, end).copy_(dchunk.slice(0, 0, count));
      }
      if (weight_gradient) add_part(dweight_VD, logits_CV.t().mm(hidden_CD.slice(0, 0, count)), wide);
    }
    if (weight_gradient && !dweight_VD.defined()) dweight_VD = at::zeros(weight_VD.sizes(), weight_VD.options());
    context->save_for_backward({dhidden_ND, dweight_VD});
    context->saved_data["hidden_type"] = static_cast<int64_t>(hidden_ND.scalar_type());
    context->saved_data["weight_type"] = static_cast<int64_t>(weight_VD.scalar_type());
    return loss;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto scaled = [&](const Tensor& gradient, const char* type) {
      if (!gradient.defined()) return Tensor();
      return (gradient * gradients[0]).to(static_cast<at::ScalarType>(context->saved_data[type].toInt()));
    };
    return {scaled(saved[0], "hidden_type"), scaled(saved[1], "weight_type"), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor linear_cross_entropy_sum(const Tensor& hidden_ND, const Tensor& weight_VD, const Tensor& labels_N,
                                const std::shared_ptr<const PackedWeight>& packed, bool fused) {
  const int64_t vocabulary = weight_VD.size(0);
  // Looking at labels on a GPU would wait for it.
  require<ShapeError>(!labels_N.is_cpu() || labels_N.numel() == 0 || labels_N.max().item<int64_t>() < vocabulary,
                      "[ops.linear_cross_entropy_sum] labels must be below {}; found others", vocabulary);
  return LinearCrossEntropySum::apply(hidden_ND, weight_VD, labels_N, packed, fused, at::GradMode::is_enabled());
}

}  // namespace lora::ops
