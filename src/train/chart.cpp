#include "train/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <optional>
#include <span>
#include <utility>

#include "lora/core/text.h"

namespace lora::train {
namespace {

constexpr size_t kBuckets = 500;         // each gives up to two points
constexpr double kViewSize = 1000;       // width and height of the drawing in its own units
constexpr double kLargestValue = 1e100;  // beyond it, differences of values may overflow
constexpr double kNothing = std::numeric_limits<double>::quiet_NaN();

bool can_be_drawn(double value) { return std::abs(value) <= kLargestValue; }

// --- Curves ---

/// Mean over the drawable values up to `reach` steps before and after each.
std::vector<CurvePoint> moving_mean(std::span<const CurvePoint> curve, size_t reach) {
  std::vector<CurvePoint> means(curve.begin(), curve.end());
  for (size_t i = 0; i < curve.size(); ++i) {
    if (!can_be_drawn(curve[i].value)) continue;
    const size_t begin = i - std::min(i, reach), end = std::min(i + reach + 1, curve.size());
    double sum = 0, count = 0;
    for (const CurvePoint& point : curve.subspan(begin, end - begin)) {
      if (!can_be_drawn(point.value)) continue;
      sum += point.value;
      ++count;
    }
    means[i].value = sum / count;
  }
  return means;
}

/// The least and the greatest value of a piece in the order of their steps, and a gap if it has
/// one.
void append_extremes(std::span<const CurvePoint> piece, std::vector<CurvePoint>& out) {
  const CurvePoint *least = nullptr, *greatest = nullptr;
  bool has_gap = false;
  for (const CurvePoint& point : piece) {
    if (!can_be_drawn(point.value)) {
      has_gap = true;
      continue;
    }
    if (least == nullptr || point.value < least->value) least = &point;
    if (greatest == nullptr || point.value > greatest->value) greatest = &point;
  }
  if (least != nullptr) {
    out.push_back(*std::min(least, greatest));
    if (least != greatest) out.push_back(*std::max(least, greatest));
  }
  if (has_gap) out.push_back({piece.back().step, kNothing});
}

/// At most 2 * kBuckets points that show every peak.
std::vector<CurvePoint> thinned(std::span<const CurvePoint> curve) {
  if (curve.size() <= 2 * kBuckets) return {curve.begin(), curve.end()};
  std::vector<CurvePoint> points;
  for (size_t i = 0; i < kBuckets; ++i) {
    const size_t begin = i * curve.size() / kBuckets, end = (i + 1) * curve.size() / kBuckets;
    append_extremes(curve.subspan(begin, end - begin), points);
  }
  return points;
}

/// Odd number of steps that the moving mean spans; 1 when the run is too short for one.
size_t smoothing_window(const Chart& chart) {
  if (!chart.smooth || chart.curve.size() < 20) return 1;
  return 2 * std::clamp<size_t>(chart.curve.size() / 50, 1, 100) + 1;
}

// --- Axes ---

struct Axis {
  double low = 0, high = 1, tick_step = 1;

  double fraction(double value) const { return (value - low) / (high - low); }
};

/// 1, 2 or 5 times a power of ten, so that about `count` ticks fit.
double nice_step(double span, double count) {
  const double power = std::pow(10, std::floor(std::log10(span / count)));
  for (const double factor : {1., 2., 5.}) {
    if (power * factor * count >= span * 0.999) return power * factor;
  }
  return power * 10;
}

Axis step_axis(double first, double last) {
  if (first == last) return {first - 1, first + 1, 1};
  return {first, last, std::max(1., nice_step(last - first, 8))};
}

Axis value_axis(double low, double high, bool from_zero) {
  from_zero = from_zero && low >= 0;
  const double size = std::max(std::abs(low), std::abs(high));
  const bool is_constant = high - low <= 1e-9 * size;
  const double margin = !is_constant ? 0.06 * (high - low) : size > 0 ? 0.1 * size : 1;
  const Axis axis{from_zero ? 0 : low - margin, high + margin};
  return {axis.low, axis.high, nice_step(axis.high - axis.low, 5)};
}

std::vector<double> ticks(const Axis& axis) {
  std::vector<double> values;
  const double first = std::ceil(axis.low / axis.tick_step);
  for (int i = 0; (first + i) * axis.tick_step <= axis.high; ++i) {
    values.push_back((first + i) * axis.tick_step);
  }
  return values;
}

int decimal_exponent(double value) { return static_cast<int>(std::floor(std::log10(value) + 1e-9)); }

/// A tick's value with the digits that tell it from its neighbours.
std::string tick_label(double value, const Axis& axis) {
  const int step_exponent = decimal_exponent(axis.tick_step);
  const double largest = std::max(std::abs(axis.low), std::abs(axis.high));
  if (value == 0) return "0";
  if (largest >= 1e7 || step_exponent < -3) {
    return fmt::format("{:.{}e}", value, std::max(0, decimal_exponent(largest) - step_exponent));
  }
  if (step_exponent < 0) return fmt::format("{:.{}f}", value, -step_exponent);
  return with_thousands(std::llround(value));
}

struct Axes {
  Axis step, value;
};

/// Axes around all that a chart shows; nothing when no value can be drawn.
std::optional<Axes> axes_of(const Chart& chart) {
  std::vector<CurvePoint> shown;
  for (const auto* points : {&chart.curve, &chart.marks}) {
    std::ranges::copy_if(*points, std::back_inserter(shown), [](const CurvePoint& point) { return can_be_drawn(point.value); });
  }
  if (shown.empty()) return std::nullopt;
  const auto [low, high] = std::ranges::minmax(shown, {}, &CurvePoint::value);
  double first = std::ranges::min(shown, {}, &CurvePoint::step).step;
  double last = std::ranges::max(shown, {}, &CurvePoint::step).step;
  // Steps without a value belong to the run too.
  if (!chart.curve.empty()) {
    first = std::min(first, chart.curve.front().step);
    last = std::max(last, chart.curve.back().step);
  }
  return Axes{step_axis(first, last), value_axis(low.value, high.value, chart.from_zero)};
}

// --- Drawing ---

std::string coordinates(const CurvePoint& point, const Axes& axes) {
  return fmt::format("{:.1f} {:.1f}", kViewSize * axes.step.fraction(point.step),
                     kViewSize * (1 - axes.value.fraction(point.value)));
}

/// The data of an SVG path, in pieces between gaps. Each opens with a line of no length: with round
/// caps that is a dot, so that a value between two gaps is seen.
std::string path_data(std::span<const CurvePoint> points, const Axes& axes) {
  std::string data;
  bool pen_is_down = false;
  for (const CurvePoint& point : points) {
    if (!can_be_drawn(point.value)) {
      pen_is_down = false;
      continue;
    }
    data += fmt::format(fmt::runtime(pen_is_down ? "L{}" : "M{}h0"), coordinates(point, axes));
    pen_is_down = true;
  }
  return data;
}

std::string path(std::string_view css_class, std::string_view data) {
  return fmt::format("<path class=\"{}\" d=\"{}\"/>", css_class, data);
}

std::string grid(const Axes& axes) {
  std::string data;
  for (const double value : ticks(axes.value)) {
    data += fmt::format("M0 {:.1f}h{}", kViewSize * (1 - axes.value.fraction(value)), kViewSize);
  }
  std::string marks;
  for (const double step : ticks(axes.step)) {
    marks += fmt::format("M{:.1f} {}v-14", kViewSize * axes.step.fraction(step), kViewSize);
  }
  return path("grid", data) + path("axis", fmt::format("M0 {0}h{0}{1}", kViewSize, marks));
}

/// Dots without a line.
std::string dots(std::string_view css_class, std::span<const CurvePoint> points, const Axes& axes) {
  std::string data;
  for (const CurvePoint& point : points) {
    if (can_be_drawn(point.value)) data += fmt::format("M{}h0", coordinates(point, axes));
  }
  return data.empty() ? "" : path(css_class, data);
}

/// Points between two gaps, of which a line would show next to nothing.
std::vector<CurvePoint> lone_points(std::span<const CurvePoint> points) {
  const auto is_gap = [&](size_t i) { return i >= points.size() || !can_be_drawn(points[i].value); };
  std::vector<CurvePoint> lone;
  for (size_t i = 0; i < points.size(); ++i) {
    if (!is_gap(i) && is_gap(i - 1) && is_gap(i + 1)) lone.push_back(points[i]);
  }
  return lone;
}

std::string skipped_ticks(const Chart& chart, const Axes& axes) {
  std::string data;
  double last_drawn = -1;
  for (const double step : chart.skipped) {
    const double x = std::round(kViewSize * axes.step.fraction(step));
    if (x != last_drawn) data += fmt::format("M{:.0f} {}v-60", x, kViewSize);
    last_drawn = x;
  }
  return path("skipped", data);
}

std::string drawing(const Chart& chart, const Axes& axes) {
  const size_t window = smoothing_window(chart);
  std::string svg = fmt::format("<svg viewBox=\"0 0 {0} {0}\" preserveAspectRatio=\"none\" aria-hidden=\"true\">", kViewSize);
  svg += grid(axes);
  const std::vector<CurvePoint> points = thinned(chart.curve);
  svg += path(window > 1 ? "raw" : "line", path_data(points, axes));
  svg += dots("lone", lone_points(points), axes);
  if (window > 1) {
    svg += path("line", path_data(thinned(moving_mean(chart.curve, window / 2)), axes));
  }
  if (!chart.marks.empty()) {
    svg += path("joined", path_data(chart.marks, axes)) + dots("mark", chart.marks, axes);
  }
  if (!chart.skipped.empty()) svg += skipped_ticks(chart, axes);
  return svg + "</svg>";
}

/// Labels are HTML, not SVG: they keep their size when the drawing is stretched to the page.
std::string tick_labels(const Axes& axes) {
  std::string html;
  for (const double value : ticks(axes.value)) {
    html += fmt::format("<i class=\"y\" style=\"top:{:.2f}%\">{}</i>", 100 * (1 - axes.value.fraction(value)),
                        tick_label(value, axes.value));
  }
  for (const double step : ticks(axes.step)) {
    html +=
        fmt::format("<i class=\"x\" style=\"left:{:.2f}%\">{}</i>", 100 * axes.step.fraction(step), tick_label(step, axes.step));
  }
  return html + "<i class=\"below\">step</i>";
}

/// What the page's script shows under the pointer: "step:value" of each point.
std::string hover_data(const Chart& chart, const Axes& axes) {
  std::string points;
  for (const CurvePoint& point : thinned(chart.curve)) {
    if (!can_be_drawn(point.value)) continue;
    if (!points.empty()) points += ' ';
    points += fmt::format("{:.0f}:{:.5g}", point.step, point.value);
  }
  return fmt::format("data-range=\"{} {} {} {}\" data-points=\"{}\"", axes.step.low, axes.step.high, axes.value.low,
                     axes.value.high, points);
}

std::string legend(const Chart& chart) {
  std::string html;
  const auto add = [&](std::string_view css_class, std::string_view label) {
    html += fmt::format("<span class=\"key {}\">{}</span>", css_class, escape_html(label));
  };
  const size_t window = smoothing_window(chart);
  if (window > 1) {
    add("raw", chart.curve_label);
    add("line", fmt::format("mean over {} steps", window));
  } else if (!chart.marks.empty()) {
    add("line", chart.curve_label);
  }
  if (!chart.marks.empty()) add("mark", chart.marks_label);
  if (!chart.skipped.empty()) add("skipped", "step without update");
  return html;
}

std::string description(const Chart& chart, const Axes& axes) {
  return fmt::format("{} over the steps {} to {}", chart.title,
                     tick_label(chart.curve.empty() ? 0 : chart.curve.front().step, axes.step),
                     tick_label(chart.curve.empty() ? 0 : chart.curve.back().step, axes.step));
}

}  // namespace

std::string chart_html(const Chart& chart) {
  const std::optional<Axes> axes = axes_of(chart);
  const std::string plot = axes ? fmt::format("<div class=\"plot\" role=\"img\" aria-label=\"{}\" {}>{}{}</div>",
                                              escape_html(description(chart, *axes)), hover_data(chart, *axes),
                                              drawing(chart, *axes), tick_labels(*axes))
                                : "<div class=\"plot empty\">no values</div>";
  return fmt::format(
      "<figure class=\"chart{}\">\n<figcaption><b>{}</b> <small>{}</small>"
      "<span class=\"legend\">{}</span></figcaption>\n{}\n</figure>\n",
      chart.wide ? " wide" : "", escape_html(chart.title), escape_html(chart.unit), axes ? legend(chart) : "", plot);
}

}  // namespace lora::train
