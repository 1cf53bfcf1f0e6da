#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace lora::eval {

/// A named result, such as "rouge-l": in percent for the metrics of this library.
struct Score {
  std::string name;
  double value = 0;
};

/// Takes rows one after the other and gives numbers over all of them.
class Metric {
 public:
  Metric() = default;
  virtual ~Metric() = default;
  Metric(const Metric&) = delete;
  Metric& operator=(const Metric&) = delete;

  /// Takes a row in. Throws DataError for texts beyond the limits of bleu4 and rouge; the row does
  /// not count then.
  virtual void add(std::string_view prediction, std::string_view reference) = 0;
  /// Over the rows so far, always the same names in the same order; 0 without rows.
  virtual std::vector<Score> scores() const = 0;
};

/// Fractions (0 to 1) of one row.
using RowScores = std::function<std::vector<double>(std::string_view prediction, std::string_view reference)>;

/// A metric that is the mean of rows' numbers: each row's `score_row` as percent, rounded to four
/// places (Python's round(100 * x, 4)). Gives one number for each of `names`; add throws
/// ConfigError when `score_row` returns another number of them.
std::unique_ptr<Metric> mean_of_rows(std::vector<std::string> names, RowScores score_row);

}  // namespace lora::eval
