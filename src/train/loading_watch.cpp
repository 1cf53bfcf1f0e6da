#include "train/loading_watch.h"

#include <fmt/format.h>

#include <string_view>
#include <utility>

namespace lora::train {
namespace {

constexpr size_t kSteps = 50;
constexpr double kShare = 0.05;

/// Where the time of the steps went, in seconds.
struct Sums {
  double total = 0, waited = 0, read = 0, transformed = 0, copied = 0;

  explicit Sums(const std::deque<StepResult>& steps) {
    for (const StepResult& step : steps) {
      total += step.step_seconds + step.data_seconds;
      waited += step.data_seconds;
      read += step.data_read_seconds;
      transformed += step.data_transform_seconds;
      copied += step.copy_seconds;
    }
  }
};

std::string_view cause_of(const Sums& sums) {
  if (sums.copied > sums.waited) return "copying batches to the device";
  return sums.read > sums.transformed ? "reading rows" : "transforming rows into tensors";
}

std::string advice_for(const Sums& sums, const LoadingWatch::Workers& workers) {
  if (sums.copied > sums.waited) {
    return "copy less padding with data.packing: true, or fewer and larger batches with train.micro_batch";
  }
  if (workers.count == 0) return "let threads load ahead with data.loader.workers: auto";
  // Workers that are fast enough on average are late now and then: more steps kept ready bridge that.
  const double needed = (sums.read + sums.transformed) / static_cast<double>(workers.count);
  if (needed < sums.total - sums.waited) return "keep more steps ready with data.loader.prefetch";
  if (!workers.are_chosen) {
    return fmt::format("use more threads than data.loader.workers: {}, or auto", workers.count);
  }
  if (sums.read > sums.transformed) return "put data.cache_dir on a faster disk";
  return fmt::format("set data.loader.workers above the {} of auto", workers.count);
}

}  // namespace

std::optional<std::string> LoadingWatch::add(const StepResult& result, const Workers& workers) {
  if (std::exchange(is_first_, false) || has_spoken_) return std::nullopt;
  steps_.push_back(result);
  if (steps_.size() > kSteps) steps_.pop_front();
  const Sums sums(steps_);
  const double share = (sums.waited + sums.copied) / sums.total;
  if (steps_.size() < kSteps || !(share > kShare)) return std::nullopt;
  has_spoken_ = true;
  return fmt::format(
      "[data.loader] loading should be hidden behind the steps; it took {:.0f} % of the last {}, most of it "
      "for {}; {}",
      100 * share, kSteps, cause_of(sums), advice_for(sums, workers));
}

}  // namespace lora::train
