#include "lora/train/eval_history.h"

#include <cmath>

namespace lora::train {

bool EvalHistory::add(int64_t step, double loss, double min_delta) {
  const bool is_finite = std::isfinite(loss);
  const bool improves = is_finite && (!improved_loss || loss < *improved_loss - min_delta);
  without_improvement = improves ? 0 : without_improvement + 1;
  if (improves) improved_loss = loss;

  const bool is_best = is_finite && (!best_loss || loss < *best_loss);
  if (is_best) {
    best_loss = loss;
    best_step = step;
  }
  return is_best;
}

}  // namespace lora::train
