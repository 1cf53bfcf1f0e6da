#include "cli/scoring_thread.h"

namespace lora::cli {

ScoringThread::ScoringThread(eval::MetricSet metrics, std::vector<int64_t> rows)
    : metrics_(std::move(metrics)), rows_(std::move(rows)), thread_([this] { work(); }) {}

ScoringThread::~ScoringThread() {
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  changed_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void ScoringThread::add(int64_t row, std::string prediction, std::string reference) {
  {
    const std::lock_guard lock(mutex_);
    waiting_.emplace(row, Texts(std::move(prediction), std::move(reference)));
  }
  changed_.notify_one();
}

void ScoringThread::work() {
  std::unique_lock lock(mutex_);
  while (next_ < rows_.size()) {
    changed_.wait(lock, [this] { return can_go_on(); });
    const auto found = waiting_.find(rows_[next_]);
    if (found == waiting_.end()) return;  // ended before this row came
    const auto [prediction, reference] = std::move(found->second);
    waiting_.erase(found);
    ++next_;
    lock.unlock();
    try {
      metrics_.add(prediction, reference);
    } catch (...) {
      failure_ = std::current_exception();
      return;
    }
    lock.lock();
  }
}

std::vector<eval::Score> ScoringThread::finish() {
  thread_.join();
  if (failure_) std::rethrow_exception(failure_);
  return metrics_.scores();
}

}  // namespace lora::cli
