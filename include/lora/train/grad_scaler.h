#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace lora::train {

struct GradScalerOptions {
  bool enabled = false;   ///< off: the scale is 1 and nothing is looked at
  bool dynamic = true;
  double init = 65536, factor = 2, min = 1;
  int64_t window = 1000;  ///< finite steps after which the scale grows
};

/// Loss scaling for fp16. Overflow: scale = max(scale / factor, min), the step is skipped. `window` finite steps in a
/// row: scale *= factor. Source: MindSpore DynamicLossScaleManager.
class GradScaler {
 public:
  explicit GradScaler(const GradScalerOptions& options);

  double scale() const { return scale_; }
  /// loss * scale.
  at::Tensor scaled(const at::Tensor& loss) const;
  /// Divides the gradients by the scale in place; true when all of them are finite (also looked at when disabled).
  bool unscale(const std::vector<at::Tensor>& gradients) const;
  /// Moves the state machine after a step.
  void update(bool overflow);

  struct State {
    double scale = 1;
    int64_t finite_steps = 0;  ///< since the last change
    bool operator==(const State&) const = default;
  };
  State state() const { return {scale_, finite_steps_}; }
  void load_state(const State& state);

 private:
  GradScalerOptions options_;
  double scale_ = 1;
  int64_t finite_steps_ = 0;
};

}  // namespace lora::train
