#include "lora/eval/metric.h"

#include <cstddef>
#include <cstdint>
#include <utility>

#include "core/check.h"
#include "eval/percent.h"

namespace lora::eval {
namespace {

class MeanOfRows : public Metric {
 public:
  MeanOfRows(std::vector<std::string> names, RowScores score_row)
      : names_(std::move(names)), score_row_(std::move(score_row)), sums_(names_.size()) {}

  void add(std::string_view prediction, std::string_view reference) override {
    const std::vector<double> row = score_row_(prediction, reference);
    require<ConfigError>(row.size() == sums_.size(), "[metric {}] a row must give {} numbers; found {}; return one for each name",
                         fmt::join(names_, ", "), sums_.size(), row.size());
    for (size_t i = 0; i < row.size(); ++i) sums_[i] += percent(row[i]);
    ++num_rows_;
  }

  std::vector<Score> scores() const override {
    std::vector<Score> scores;
    for (size_t i = 0; i < names_.size(); ++i) {
      scores.push_back({names_[i], num_rows_ > 0 ? sums_[i] / static_cast<double>(num_rows_) : 0});
    }
    return scores;
  }

 private:
  std::vector<std::string> names_;
  RowScores score_row_;
  std::vector<double> sums_;
  int64_t num_rows_ = 0;
};

}  // namespace

std::unique_ptr<Metric> mean_of_rows(std::vector<std::string> names, RowScores score_row) {
  return std::make_unique<MeanOfRows>(std::move(names), std::move(score_row));
}

}  // namespace lora::eval
