#include "lora/train/grad_scaler.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/check.h"

namespace lora::train {

GradScaler::GradScaler(const GradScalerOptions& options) : options_(options) {
  if (!options.enabled) return;
  require<ConfigError>(options.min > 0 && options.min <= options.init && options.init <= kMaxScale,
                       "[scaler] min and init must satisfy 0 < min <= init <= 2^100; found min {} and init {}; use "
                       "for example min 1 and init 65536",
                       options.min, options.init);
  require<ConfigError>(options.factor > 1 && options.window >= 1,
                       "[scaler] factor must exceed 1 and window be at least 1; found {} and {}; use for example "
                       "factor 2 and window 1000",
                       options.factor, options.window);
  state_.scale = options.init;
}

at::Tensor GradScaler::scaled(const at::Tensor& loss) const { return loss * state_.scale; }

bool GradScaler::unscale(const std::vector<at::Tensor>& gradients) const { return unscale_unread(gradients).item<float>() == 0; }

at::Tensor GradScaler::unscale_unread(const std::vector<at::Tensor>& gradients) const {
  if (gradients.empty()) return at::zeros({}, at::kFloat);
  const auto options = gradients.front().options().dtype(at::kFloat);
  at::Tensor found = at::zeros({}, options);
  at::_amp_foreach_non_finite_check_and_unscale_(gradients, found, at::full({}, 1 / state_.scale, options));
  return found;
}

void GradScaler::update(bool overflow) {
  if (!adapts()) return;
  if (overflow) {
    state_ = {std::max(state_.scale / options_.factor, options_.min), 0};
  } else if (++state_.finite_steps >= options_.window) {
    state_ = {std::min(state_.scale * options_.factor, kMaxScale), 0};
  }
}

bool GradScaler::can_back_off() const { return adapts() && state_.scale > options_.min; }

void GradScaler::load_state(const State& state) {
  require<FormatError>(state.scale > 0 && state.scale <= kMaxScale && state.finite_steps >= 0,
                       "[scaler] a saved loss scale must be in (0, 2^100] after no fewer than 0 finite steps; found "
                       "{} after {}; use another checkpoint",
                       state.scale, state.finite_steps);
  // A run whose options no longer scale, or scale by a fixed number, goes by its options.
  if (adapts()) state_ = state;
}

}  // namespace lora::train
