#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace lora::train {

/// The loss scale: fixed, or found step by step.
struct GradScalerOptions {
  bool enabled = false;  ///< off: the scale is 1 and stays so
  bool dynamic = true;   ///< off: the scale stays at `init`
  double init = 65536, factor = 2, min = 1;
  int64_t window = 1000;  ///< finite steps after which the scale grows
};

/// Loss scaling for fp16. Overflow: scale = max(scale / factor, min), the step is skipped. `window`
/// finite steps in a row: scale *= factor, up to kMaxScale. Source: MindSpore
/// DynamicLossScaleManager, which has no upper bound.
class GradScaler {
 public:
  /// The scale never grows beyond this, so that it and its inverse stay ordinary fp32 numbers even
  /// when nothing ever overflows (a loss of zero).
  static constexpr double kMaxScale = 0x1p100;

  /// Throws ConfigError unless 0 < min <= init <= kMaxScale, factor > 1 and window >= 1.
  explicit GradScaler(const GradScalerOptions& options);

  double scale() const { return state_.scale; }
  /// loss * scale.
  at::Tensor scaled(const at::Tensor& loss) const;
  /// Divides the gradients (fp32 or double, on one device) by the scale in place; true when all of
  /// them are finite. That is looked at when scaling is off, too.
  bool unscale(const std::vector<at::Tensor>& gradients) const;
  /// The same without waiting for a GPU: a scalar on the gradients' device, 0 when all are finite.
  at::Tensor unscale_unread(const std::vector<at::Tensor>& gradients) const;
  /// Moves the state machine after a step.
  void update(bool overflow);
  /// True when an overflow now would lower the scale: then it is part of normal work.
  bool can_back_off() const;

  struct State {
    double scale = 1;
    int64_t finite_steps = 0;  ///< since the last change
    bool operator==(const State&) const = default;
  };
  State state() const { return state_; }
  /// Throws FormatError for a state that no run could have left.
  void load_state(const State& state);

 private:
  bool adapts() const { return options_.enabled && options_.dynamic; }

  GradScalerOptions options_;
  State state_;
};

}  // namespace lora::train
