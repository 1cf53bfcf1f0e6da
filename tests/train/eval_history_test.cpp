#include "lora/train/eval_history.h"

#include <cmath>
#include <limits>
#include <vector>

#include "catch.h"

using lora::train::EvalHistory;

namespace {

/// Evaluations without improvement after each of the losses, measured after steps 10, 20, ...
std::vector<int64_t> waits(EvalHistory& history, const std::vector<double>& losses, double min_delta = 0) {
  std::vector<int64_t> found;
  for (size_t i = 0; i < losses.size(); ++i) {
    history.add(10 * (static_cast<int64_t>(i) + 1), losses[i], min_delta);
    found.push_back(history.without_improvement);
  }
  return found;
}

}  // namespace

TEST_CASE("the best evaluation is the lowest, the first of equal ones", "[train]") {
  EvalHistory history;
  CHECK(history.add(10, 2.0));
  CHECK_FALSE(history.add(20, 2.5));
  CHECK(history.add(30, 1.5));
  CHECK_FALSE(history.add(40, 1.5));
  CHECK(history.best_loss == 1.5);
  CHECK(history.best_step == 30);
  CHECK(history.without_improvement == 1);
}

TEST_CASE("only a fall of more than min_delta is an improvement, small ones add up", "[train]") {
  EvalHistory history;
  CHECK(waits(history, {2.0, 1.875, 1.75, 1.5, 1.5, 1.25, 1.0}, 0.25) == std::vector<int64_t>{0, 1, 2, 0, 1, 2, 0});
  CHECK(history.best_step == 70);
  EvalHistory drifting;
  CHECK(waits(drifting, {2.0, 1.875, 1.8125}, 0.5) == std::vector<int64_t>{0, 1, 2});
  CHECK(drifting.best_loss == 1.8125);
  CHECK(drifting.improved_loss == 2.0);
}

TEST_CASE("a loss that is not finite is no improvement and never the best", "[train]") {
  EvalHistory history;
  const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
  CHECK(waits(history, {nan, infinity, -infinity}) == std::vector<int64_t>{1, 2, 3});
  CHECK_FALSE(history.best_loss);
  CHECK(history.add(40, 3.0));
  CHECK(history.without_improvement == 0);
}
