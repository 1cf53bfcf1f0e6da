#include "train/chart.h"

#include <limits>
#include <vector>

#include "catch.h"
#include "train/page_text.h"

using lora::testing::count;
using lora::testing::has;
using lora::testing::path_of;
using lora::train::Chart;
using lora::train::chart_html;

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

Chart chart_of(const std::vector<double>& values) {
  Chart chart{"Title", "unit", {}};
  for (size_t i = 0; i < values.size(); ++i) {
    chart.curve.push_back({static_cast<double>(i + 1), values[i]});
  }
  return chart;
}

}  // namespace

TEST_CASE("a curve goes through its points", "[train]") {
  Chart chart = chart_of({0, 10, 5});
  chart.from_zero = true;
  // Values from 0 to 10 and 6 % above; steps 1 to 3.
  CHECK(path_of(chart_html(chart), "line") == "M0.0 1000.0h0L500.0 56.6L1000.0 528.3");
}

TEST_CASE("values that are not finite leave gaps", "[train]") {
  Chart chart = chart_of({0, 10, kNaN, 5, kNaN, std::numeric_limits<double>::infinity(), 0, 10});
  chart.from_zero = true;
  const std::string path = path_of(chart_html(chart), "line");
  CHECK(count(path, "M") == 3);
  CHECK(count(path, "L") == 2);
  CHECK(count(path_of(chart_html(chart), "lone"), "M") == 1);
}

TEST_CASE("charts of little are charts", "[train]") {
  CHECK(has(chart_html(chart_of({})), "no values"));
  CHECK(has(chart_html(chart_of({kNaN, kNaN})), "no values"));
  CHECK(path_of(chart_html(chart_of({7})), "line") == "M500.0 500.0h0");
  CHECK(path_of(chart_html(chart_of({7, 7})), "line") == "M0.0 500.0h0L1000.0 500.0");
  CHECK(path_of(chart_html(chart_of({0, 0})), "line") == "M0.0 500.0h0L1000.0 500.0");
  CHECK(path_of(chart_html(chart_of({-1e308, 1})), "line") == "M1000.0 500.0h0");
}

TEST_CASE("axes have round numbers with the digits they need", "[train]") {
  const auto has_ticks = [](Chart chart, std::initializer_list<const char*> labels) {
    chart.from_zero = true;
    const std::string html = chart_html(chart);
    for (const char* label : labels) {
      CAPTURE(label);
      CHECK(has(html, std::string("%\">") + label + "</i>"));
    }
  };
  has_ticks(chart_of({0, 1e-4, 2e-4}), {"0", "5.0e-05", "1.0e-04", "1.5e-04", "2.0e-04"});
  has_ticks(chart_of({0, 1}), {"0", "0.5", "1.0"});
  has_ticks(chart_of({0, 12000}), {"5,000", "10,000"});
  has_ticks(chart_of({0, 3e9}), {"1e+09", "2e+09", "3e+09"});
  has_ticks(chart_of(std::vector<double>(3000, 1)), {"500", "1,000", "3,000"});
}

TEST_CASE("long curves are thinned without losing their peaks", "[train]") {
  std::vector<double> values(100000, 1);
  values[54321] = 9;
  values[54322] = -9;
  Chart chart = chart_of(values);
  const std::string path = path_of(chart_html(chart), "line");
  CHECK(count(path, "M") + count(path, "L") <= 1000);
  CHECK(has(path, "L543.2 "));
  chart.curve[54321].value = chart.curve[54322].value = kNaN;
  CHECK(count(path_of(chart_html(chart), "line"), "M") == 2);
}

TEST_CASE("the smoothed line is the mean of its neighbours", "[train]") {
  std::vector<double> values(30, 0);
  values[10] = 3;
  Chart chart = chart_of(values);
  chart.smooth = chart.from_zero = true;
  const std::string html = chart_html(chart);
  CHECK(has(html, "mean over 3 steps"));
  // Height 3 of 3.18: raw 56.6; the mean 1 of 3.18, at steps 10 to 12: 685.5.
  CHECK(count(path_of(html, "raw"), " 56.6") == 1);
  CHECK(count(path_of(html, "line"), " 685.5") == 3);
}
