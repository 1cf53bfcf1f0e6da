#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/utils.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "lora/ops/frozen_linear.h"
#include "ops/transposed.h"

namespace lora::ops {
namespace {

/// oneDNN's linear operators have no C++ header; the dispatcher knows them.
Tensor reordered(const Tensor& weight_OI) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mkldnn::_reorder_linear_weight", "")
                             .typed<Tensor(const Tensor&, std::optional<int64_t>)>();
  return op.call(weight_OI, std::nullopt);
}

Tensor multiplied_whole(const Tensor& x_NI, const Tensor& reordered_OI) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
                             .typed<Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, std::string_view,
                                           c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>)>();
  return op.call(x_NI, reordered_OI, std::nullopt, "none", c10::List<std::optional<at::Scalar>>(), "");
}

/// How many parts the rows of x are multiplied in, each by a thread. One where oneDNN shares the work out itself. Of products
/// with few outputs and a middling number of rows it makes a single piece, and one thread computes all (oneDNN 3.7, bf16: up to
/// 768 outputs with 448 to 1280 rows; sharing pays there by 1.4 to 1.7, and costs a tenth for more or fewer rows).
int64_t row_parts(int64_t rows, int64_t outputs) {
  constexpr int64_t kFewOutputs = 1024, kLeastRows = 400, kMostRows = 1280, kLeastRowsOfPart = 128;
  const bool is_one_piece = outputs < kFewOutputs && rows >= kLeastRows && rows <= kMostRows;
  return is_one_piece && !at::in_parallel_region() ? std::min<int64_t>(at::get_num_threads(), rows / kLeastRowsOfPart) : 1;
}

Tensor multiplied(const Tensor& x_NI, const Tensor& reordered_OI) {
  const int64_t rows = x_NI.size(0), parts = row_parts(rows, reordered_OI.size(0));
  if (parts == 1) return multiplied_whole(x_NI, reordered_OI);
  const Tensor y_NO = at::empty({rows, reordered_OI.size(0)}, x_NI.options());
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    // The calling thread's modes are not this one's. With gradients oneDNN would prepare for training, for which processors
    // without AMX have its reference implementation alone, hundreds of times as slow.
    const at::AutoDispatchBelowAutograd no_autograd;
    const torch::NoGradGuard no_grad;
    const int64_t begin = rows * first / parts, end = rows * last / parts;
    y_NO.slice(0, begin, end).copy_(multiplied_whole(x_NI.slice(0, begin, end), reordered_OI));
  });
  return y_NO;
}

/// Whether each weight begins in memory where the one before it ends.
bool lie_side_by_side(const std::vector<Tensor>& weights) {
  int64_t next = weights.front().storage_offset();
  return std::all_of(weights.begin(), weights.end(), [&](const Tensor& weight) {
    const bool follows = weight.is_contiguous() && weight.scalar_type() == weights.front().scalar_type() &&
                         weight.storage_offset() == next && weight.storage().is_alias_of(weights.front().storage());
    next += weight.numel();
    return follows;
  });
}

/// Below each other, (sum of O, I); without a copy when they lie so already.
Tensor joined(const std::vector<Tensor>& weights, at::ScalarType dtype) {
  const Tensor first = weights.front().detach();
  if (weights.size() == 1) return first.to(dtype);
  const auto rows = std::transform_reduce(weights.begin(), weights.end(), int64_t{0}, std::plus<>(),
                                          [](const Tensor& weight) { return weight.size(0); });
  if (lie_side_by_side(weights)) return first.as_strided({rows, first.size(1)}, {first.size(1), 1}).to(dtype);
  std::vector<Tensor> parts;
  for (const Tensor& weight : weights) parts.push_back(weight.detach().to(dtype));
  return at::cat(parts);
}

bool processor_multiplies(const char* schema) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(schema, "").typed<bool()>().call();
}

}  // namespace

bool PackedWeight::pays(at::ScalarType dtype) {
  if (dtype == at::kBFloat16) return processor_multiplies("mkldnn::_is_mkldnn_bf16_supported");
  if (dtype == at::kHalf) return processor_multiplies("mkldnn::_is_mkldnn_fp16_supported");
  return false;
}

PackedWeight::PackedWeight(const std::vector<Tensor>& weights, at::ScalarType dtype)
    : dtype_(dtype), inputs_(weights.front().size(1)) {
  const at::NoGradGuard no_grad;
  for (const Tensor& weight : weights) rows_.push_back(weight.size(0));
  forward_ = reordered(joined(weights, dtype));
}

Tensor PackedWeight::times(const Tensor& x_NI) const { return multiplied(x_NI, forward_); }

Tensor PackedWeight::times_transposed(const Tensor& dy_NO) const {
  std::call_once(backward_is_made_, [this] {
    const at::NoGradGuard no_grad;
    backward_ = reordered(transposed(forward_.to_dense(dtype_)));
  });
  return multiplied(dy_NO, backward_);
}

Tensor PackedWeight::times_once(const std::vector<Tensor>& weights, const Tensor& x_NI) {
  const at::NoGradGuard no_grad;
  const Tensor packed = reordered(joined(weights, x_NI.scalar_type()));
  return multiplied(x_NI, packed);
}

Tensor PackedWeight::times_transposed_once(const std::vector<Tensor>& weights, const Tensor& dy_NO) {
  const at::NoGradGuard no_grad;
  const Tensor packed = reordered(transposed(joined(weights, dy_NO.scalar_type()).contiguous()));
  return multiplied(dy_NO, packed);
}

std::vector<Tensor> PackedWeight::unpacked() const {
  const at::NoGradGuard no_grad;
  std::vector<Tensor> weights;
  for (const Tensor& part : forward_.to_dense(dtype_).split_with_sizes(rows_)) weights.push_back(part.clone());
  return weights;
}

uint64_t PackedWeight::bytes() const {
  const auto outputs = std::accumulate(rows_.begin(), rows_.end(), int64_t{0});
  const uint64_t forms = backward_.defined() ? 2 : 1;
  return forms * static_cast<uint64_t>(outputs * inputs_) * c10::elementSize(dtype_);
}

}  // namespace lora::ops
