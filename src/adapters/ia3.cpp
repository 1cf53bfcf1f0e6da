#include "lora/adapters/ia3.h"

#include <ATen/ATen.h>

#include "core/check.h"

namespace lora {

Ia3Linear::Ia3Linear(const nn::LinearLayout& layout, bool is_feedforward, bool init_ones) : is_feedforward_(is_feedforward) {
  const std::vector<int64_t> shape =
      is_feedforward ? std::vector<int64_t>{1, layout.in_features} : std::vector<int64_t>{layout.out_features, 1};
  ia3_l = register_parameter("ia3_l", init_ones ? at::ones(shape, at::kFloat) : at::randn(shape, at::kFloat));
}

at::Tensor Ia3Linear::delta(const at::Tensor& x) {
  fail<ConfigError>("[adapters.ia3] (IA)^3 scales and adds nothing; its delta was asked for, for an input of {} numbers",
                    x.numel());
}

at::Tensor Ia3Linear::weight_delta() const {
  fail<ConfigError>("[adapters.ia3] (IA)^3 scales a weight and has no difference of its own; ask for merged()");
}

at::Tensor Ia3Linear::input_scale() const { return is_feedforward_ ? ia3_l.flatten() : at::Tensor(); }

at::Tensor Ia3Linear::output_scale(const at::Tensor& /*rows_RO*/, nn::LinearImpl& /*layer*/) {
  return is_feedforward_ ? at::Tensor() : ia3_l.flatten();
}

at::Tensor Ia3Linear::merged(const at::Tensor& weight, const at::Tensor& /*base*/) const { return weight * ia3_l; }

at::Tensor Ia3Linear::merged_bias(const at::Tensor& bias) const { return is_feedforward_ ? bias : bias * ia3_l.flatten(); }

}  // namespace lora
