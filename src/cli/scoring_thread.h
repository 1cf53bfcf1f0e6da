// Metrics computed beside generation, in the order of the rows whatever order they come in.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "lora/eval/metric_set.h"

namespace lora::cli {

class ScoringThread {
 public:
  /// `rows`: the numbers of all rows to come, in the order in which metrics take them.
  ScoringThread(eval::MetricSet metrics, std::vector<int64_t> rows);
  ~ScoringThread();
  ScoringThread(const ScoringThread&) = delete;
  ScoringThread& operator=(const ScoringThread&) = delete;

  /// Every row once, from one thread.
  void add(int64_t row, std::string prediction, std::string reference);
  /// Waits until all rows are scored. Throws what a metric threw.
  std::vector<eval::Score> finish();

 private:
  using Texts = std::pair<std::string, std::string>;
  void work();
  bool can_go_on() const { return ended_ || next_ == rows_.size() || waiting_.contains(rows_[next_]); }

  eval::MetricSet metrics_;
  std::vector<int64_t> rows_;
  size_t next_ = 0;  ///< place in rows_
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int64_t, Texts> waiting_;
  bool ended_ = false;
  std::exception_ptr failure_;
  std::thread thread_;
};

}  // namespace lora::cli
