// One curve over the steps of a run as HTML with inline SVG, for the report page.
#pragma once

#include <string>
#include <vector>

namespace lora::train {

/// A value at a step; NaN and infinities leave a gap in the curve.
struct CurvePoint {
  double step = 0, value = 0;
};

/// What one chart shows.
struct Chart {
  std::string title, unit;
  std::vector<CurvePoint> curve;                   ///< in the order of the steps
  std::vector<CurvePoint> marks = {};              ///< values measured now and then, over the curve
  std::string curve_label = {}, marks_label = {};  ///< for the legend, which is left out without marks
  std::vector<double> skipped = {};                ///< steps without an update, ticked on the axis
  bool smooth = false;                             ///< a moving mean over the curve
  bool from_zero = false;                          ///< the axis of a curve without negative values starts at 0
  bool wide = false;                               ///< the page's whole width
};

/// A <figure> in the classes of report_page.h; its size does not grow with the number of steps.
std::string chart_html(const Chart& chart);

}  // namespace lora::train
