#pragma once

#include <cstdint>
#include <optional>

namespace lora::train {

/// What a run's evaluations on the way have shown so far. Part of its state: saved in checkpoints.
struct EvalHistory {
  std::optional<double> best_loss;  ///< the lowest; nothing before one that is finite
  int64_t best_step = 0;            ///< after which it was measured
  /// Of the last evaluation that counts as an improvement: the first one, and each more than min_delta below it.
  std::optional<double> improved_loss;
  int64_t without_improvement = 0;  ///< evaluations since then

  /// Adds the held-out loss after a step. True when it is the lowest so far; a loss that is not finite never is, and improves
  /// nothing.
  bool add(int64_t step, double loss, double min_delta = 0);
  bool operator==(const EvalHistory&) const = default;
};

}  // namespace lora::train
