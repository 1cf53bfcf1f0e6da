#include "lora/nn/rotary.h"

#include <ATen/ATen.h>

#include <cmath>

#include "ops/rows.h"

namespace lora::nn {
namespace {

at::Tensor inverse_frequencies(int64_t head_dim, double theta, bool half_precision, const at::TensorOptions& options) {
  const at::Tensor exponents = at::arange(0, head_dim, 2, options.dtype(at::kFloat)).div_(static_cast<double>(head_dim));
  const at::Tensor exact = at::pow(theta, exponents).reciprocal_();
  return half_precision ? exact.to(at::kHalf).to(at::kFloat) : exact;
}

}  // namespace

RotaryTable::RotaryTable(int64_t head_dim, double theta, bool half_precision)
    : head_dim_(head_dim), theta_(theta), half_precision_(half_precision) {
  const at::Tensor values = inverse_frequencies(head_dim, theta, half_precision, at::kCPU);
  inverse_frequencies_.assign(values.const_data_ptr<float>(), values.const_data_ptr<float>() + values.numel());
}

std::pair<at::Tensor, at::Tensor> RotaryTable::at(const at::Tensor& position_ids_BS) const {
  if (position_ids_BS.is_cpu() && position_ids_BS.numel() <= ops::rows::kFewRows) return of_few(position_ids_BS.contiguous());
  const at::Tensor frequencies = inverse_frequencies(head_dim_, theta_, half_precision_, position_ids_BS.options());
  const at::Tensor angles = position_ids_BS.to(at::kFloat).unsqueeze(-1) * frequencies;
  return {angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)};
}

/// Number by number: a vectorised cosine may depend on where in a tensor it stands, and costs several operations.
std::pair<at::Tensor, at::Tensor> RotaryTable::of_few(const at::Tensor& position_ids_BS) const {
  const auto half = static_cast<int64_t>(inverse_frequencies_.size());
  const auto options = position_ids_BS.options().dtype(at::kFloat);
  at::Tensor cos = at::empty({position_ids_BS.size(0), 1, position_ids_BS.size(1), half}, options), sin = at::empty_like(cos);
  auto *cosine = cos.mutable_data_ptr<float>(), *sine = sin.mutable_data_ptr<float>();
  for (int64_t i = 0; i < position_ids_BS.numel(); ++i) {
    const auto position = static_cast<float>(position_ids_BS.const_data_ptr<int64_t>()[i]);
    for (const float frequency : inverse_frequencies_) {
      *cosine++ = std::cos(position * frequency);
      *sine++ = std::sin(position * frequency);
    }
  }
  return {cos, sin};
}

}  // namespace lora::nn
