#include "lora/nn/rotary.h"

#include <ATen/ATen.h>

namespace lora::nn {

std::pair<at::Tensor, at::Tensor> RotaryTable::at(const at::Tensor& position_ids_BS) const {
  const auto fp32 = position_ids_BS.options().dtype(at::kFloat);
  const at::Tensor exponents = at::arange(0, head_dim_, 2, fp32).div_(static_cast<double>(head_dim_));
  const at::Tensor inverse_frequencies = at::pow(theta_, exponents).reciprocal_();
  const at::Tensor angles = position_ids_BS.to(at::kFloat).unsqueeze(-1) * inverse_frequencies;
  return {angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)};
}

}  // namespace lora::nn
