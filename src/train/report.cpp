#include "lora/train/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ranges>
#include <string_view>
#include <utility>

#include "lora/core/text.h"
#include "train/chart.h"
#include "train/report_page.h"

namespace lora::train {
namespace {

using Steps = std::vector<StepResult>;

constexpr size_t kListedSteps = 20;

/// Any text as HTML: whatever bytes a model or a file name is made of.
std::string html(std::string_view text) { return escape_html(escape_control(to_utf8(text))); }

// --- Summary ---

struct Card {
  std::string label, value, note = {}, note_class = {};
};

std::string card_html(const Card& card) {
  const bool is_long = card.value.size() > 22;
  std::string text = fmt::format("<div class=\"card\"><div class=\"label\">{}</div><div class=\"value{}\">{}</div>",
                                 html(card.label), is_long ? " long" : "", html(card.value));
  if (!card.note.empty()) {
    text += fmt::format("<div class=\"note {}\">{}</div>", card.note_class, html(card.note));
  }
  return text + "</div>\n";
}

std::string number(double value) { return std::isfinite(value) ? fmt::format("{:.4f}", value) : "not finite"; }

std::string duration(double seconds) {
  if (seconds < 60) return fmt::format("{:.1f} s", seconds);
  const auto minutes = static_cast<int64_t>(std::min(seconds, 1e9) / 60 + 0.5);
  if (minutes < 60) return fmt::format("{} min", minutes);
  return fmt::format("{} h {:02} min", minutes / 60, minutes % 60);
}

/// A loss at two times, and how far it fell.
Card change_card(std::string label, double before, double after) {
  Card card{std::move(label), number(before) + " → " + number(after)};
  if (std::isfinite(before) && std::isfinite(after) && before > 0) {
    const double percent = 100 * (after - before) / before;
    card.note = fmt::format("{:+.1f} %", percent);
    card.note_class = percent < 0 ? "good" : percent > 0 ? "bad" : "";
  }
  return card;
}

/// Mean loss over up to a tenth of the steps (at most 50) from one end: single steps are noise.
template <class Range>
double mean_loss(Range&& steps, size_t total) {
  const size_t wanted = std::clamp<size_t>(total / 10, 1, 50);
  double sum = 0;
  size_t count = 0;
  for (const StepResult& step : steps) {
    if (count == wanted) break;
    if (!std::isfinite(step.loss)) continue;
    sum += step.loss;
    ++count;
  }
  return count == 0 ? std::nan("") : sum / static_cast<double>(count);
}

Card training_loss_card(const Steps& steps) {
  const double last = mean_loss(std::views::reverse(steps), steps.size());
  if (steps.size() == 1) return {"Training loss", number(last)};
  return change_card("Training loss", mean_loss(steps, steps.size()), last);
}

/// Middle of the finite values; 0 without any.
double median(const Steps& steps, double StepResult::*field) {
  std::vector<double> values;
  for (const StepResult& step : steps) {
    if (std::isfinite(step.*field)) values.push_back(step.*field);
  }
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

double finite_sum(const Steps& steps, double StepResult::*field) {
  double sum = 0;
  for (const StepResult& step : steps) sum += std::isfinite(step.*field) ? step.*field : 0;
  return sum;
}

bool is_skipped(const StepResult& step) { return step.overflow || !step.nonfinite.empty(); }

Card steps_card(const Steps& steps) {
  const auto skipped = std::ranges::count_if(steps, is_skipped);
  Card card{"Steps", with_thousands(static_cast<long long>(steps.size()))};
  card.note = skipped == 0 ? "all finite" : fmt::format("{} without update", skipped);
  card.note_class = skipped == 0 ? "" : "bad";
  return card;
}

Card throughput_card(const Steps& steps) {
  int64_t tokens = 0;
  for (const StepResult& step : steps) tokens += step.tokens;
  const double rate = std::min(median(steps, &StepResult::tokens_per_second), 1e15);
  return {"Throughput", with_thousands(std::llround(rate)) + " tokens/s",
          fmt::format("{} tokens in all", with_thousands(tokens))};
}

Card time_card(const Steps& steps) {
  const double waited = finite_sum(steps, &StepResult::data_seconds);
  const double total = finite_sum(steps, &StepResult::step_seconds) + waited;
  return {"Training time", duration(total),
          fmt::format("{:.3g} s per step, {:.1f} % on data", median(steps, &StepResult::step_seconds),
                      total > 0 ? 100 * waited / total : 0)};
}

std::vector<Card> cards_of(const ReportContent& content) {
  std::vector<Card> cards;
  const auto& before = content.eval_loss_before;
  const auto& after = content.eval_loss_after;
  if (before && after) {
    cards.push_back(change_card("Held-out loss", *before, *after));
  } else if (before || after) {
    cards.push_back({before ? "Held-out loss before" : "Held-out loss", number(*(before ? before : after))});
  }
  const Steps& steps = content.steps;
  if (!steps.empty()) {
    cards.push_back(training_loss_card(steps));
    cards.push_back(steps_card(steps));
    cards.push_back(throughput_card(steps));
    cards.push_back(time_card(steps));
    const uint64_t peak = std::ranges::max(steps, {}, &StepResult::peak_bytes).peak_bytes;
    if (peak > 0) cards.push_back({"Peak memory", human_bytes(peak)});
  }
  for (const auto& [label, value] : content.summary) cards.push_back({label, value});
  return cards;
}

std::string header(const ReportContent& content) {
  std::string text = fmt::format("<header>\n<p class=\"over\">Fine-tuning report</p>\n<h1>{}</h1>\n<div class=\"cards\">\n",
                                 html(content.title));
  for (const Card& card : cards_of(content)) text += card_html(card);
  return text + "</div>\n</header>\n";
}

// --- Curves ---

std::vector<CurvePoint> curve_of(const Steps& steps, double StepResult::*field, bool without_skipped = false) {
  std::vector<CurvePoint> points;
  points.reserve(steps.size());
  for (const StepResult& step : steps) {
    const bool is_gap = without_skipped && step.overflow;
    points.push_back({static_cast<double>(step.step), is_gap ? std::nan("") : step.*field});
  }
  return points;
}

/// Held-out loss before the first step, where it was measured on the way, and at the end.
std::vector<CurvePoint> eval_points(const ReportContent& content) {
  std::vector<CurvePoint> points;
  const Steps& steps = content.steps;
  const double first = steps.empty() ? 1 : static_cast<double>(steps.front().step);
  const double last = steps.empty() ? 1 : static_cast<double>(steps.back().step);
  if (content.eval_loss_before) points.push_back({first - 1, *content.eval_loss_before});
  for (const StepResult& step : steps) {
    if (step.eval_loss) points.push_back({static_cast<double>(step.step), *step.eval_loss});
  }
  const bool end_is_there = !points.empty() && points.back().step == last;
  if (content.eval_loss_after && !end_is_there) points.push_back({last, *content.eval_loss_after});
  return points;
}

std::vector<double> skipped_steps(const Steps& steps) {
  std::vector<double> numbers;
  for (const StepResult& step : steps) {
    if (is_skipped(step)) numbers.push_back(static_cast<double>(step.step));
  }
  return numbers;
}

Chart loss_chart(const ReportContent& content) {
  Chart chart{"Loss", "mean over targets", curve_of(content.steps, &StepResult::loss, true)};
  chart.marks = eval_points(content);
  chart.curve_label = "training";
  chart.marks_label = "held-out";
  chart.skipped = skipped_steps(content.steps);
  chart.smooth = chart.wide = true;
  return chart;
}

/// A quantity that differs from step to step but is never negative.
Chart noisy_chart(std::string title, std::string unit, std::vector<CurvePoint> curve) {
  Chart chart{std::move(title), std::move(unit), std::move(curve)};
  chart.curve_label = "per step";
  chart.smooth = chart.from_zero = true;
  return chart;
}

std::string curves(const Steps& steps, const Chart& loss) {
  Chart rate{"Learning rate", "", curve_of(steps, &StepResult::learning_rate)};
  rate.from_zero = true;
  std::vector<CurvePoint> waiting_ms = curve_of(steps, &StepResult::data_seconds);
  for (CurvePoint& point : waiting_ms) point.value *= 1000;
  return "<section>\n<h2>Curves</h2>\n<div class=\"charts\">\n" + chart_html(loss) + chart_html(rate) +
         chart_html(noisy_chart("Gradient norm", "before clipping", curve_of(steps, &StepResult::grad_norm, true))) +
         chart_html(noisy_chart("Throughput", "tokens/s", curve_of(steps, &StepResult::tokens_per_second))) +
         chart_html(noisy_chart("Wait for data", "ms per step", std::move(waiting_ms))) + "</div>\n</section>\n";
}

// --- Ranks ---

/// Steps that allocated ranks, at most as many as fit a page, the last one always among them.
std::vector<const StepResult*> shown_allocations(const Steps& steps, size_t modules) {
  constexpr size_t kColumns = 60;
  std::vector<const StepResult*> all;
  for (const StepResult& step : steps) {
    if (!step.ranks.empty() && step.ranks.size() == modules) all.push_back(&step);
  }
  if (all.size() <= kColumns) return all;
  std::vector<const StepResult*> shown;
  for (size_t i = 0; i < kColumns; ++i) shown.push_back(all[i * (all.size() - 1) / (kColumns - 1)]);
  return shown;
}

/// A map of the ranks: a row per module, a column per allocation, darker where more ranks are left.
std::string rank_map(const ReportContent& content) {
  const auto columns = shown_allocations(content.steps, content.rank_modules.size());
  if (columns.empty()) return {};
  int64_t most = 1;
  for (const auto* step : columns) most = std::max(most, std::ranges::max(step->ranks));
  std::string text = "<section>\n<h2>Ranks</h2>\n<div class=\"panel ranks\"><table>\n<thead><tr><th>module</th>";
  for (const auto* step : columns) text += fmt::format("<th>{}</th>", step->step);
  text += "</tr></thead>\n<tbody>\n";
  for (size_t i = 0; i < content.rank_modules.size(); ++i) {
    text += fmt::format("<tr><th>{}</th>", html(content.rank_modules[i]));
    for (const auto* step : columns) {
      const int64_t rank = step->ranks[i];
      text += fmt::format("<td style=\"background:rgba(37,99,235,{:.2f})\">{}</td>",
                          0.75 * static_cast<double>(rank) / static_cast<double>(most), rank);
    }
    text += "</tr>\n";
  }
  return text + "</tbody>\n</table></div>\n</section>\n";
}

// --- Tables ---

std::string sample_cell(std::string_view css_class, std::string_view label, std::string_view text) {
  return fmt::format("<td class=\"{}\" data-label=\"{}\">{}</td>", css_class, label, html(text));
}

std::string samples(const std::vector<SampleGeneration>& samples) {
  if (samples.empty()) return {};
  std::string text =
      "<section>\n<h2>Sample generations</h2>\n<div class=\"panel samples\"><table>\n<thead><tr>"
      "<th>Prompt</th><th>Before training</th><th>After "
      "training</th><th>Reference</th></tr></thead>"
      "\n<tbody>\n";
  for (const SampleGeneration& sample : samples) {
    text += "<tr>" + sample_cell("prompt", "Prompt", sample.prompt) + sample_cell("before", "Before training", sample.before) +
            sample_cell("after", "After training", sample.after) + sample_cell("reference", "Reference", sample.reference) +
            "</tr>\n";
  }
  return text + "</tbody>\n</table></div>\n</section>\n";
}

std::string pairs(std::string_view title, const std::vector<std::pair<std::string, std::string>>& entries) {
  if (entries.empty()) return {};
  std::string text = fmt::format("<section>\n<h2>{}</h2>\n<div class=\"panel pairs\"><table><tbody>\n", title);
  for (const auto& [label, value] : entries) {
    text += fmt::format("<tr><th>{}</th><td>{}</td></tr>\n", html(label), html(value));
  }
  return text + "</tbody></table></div>\n</section>\n";
}

std::string nonfinite_steps(const Steps& steps) {
  std::vector<std::pair<std::string, std::string>> entries;
  for (const StepResult& step : steps) {
    if (step.nonfinite.empty()) continue;
    if (entries.size() == kListedSteps) {
      entries.emplace_back("…", "more in the metrics file");
      break;
    }
    entries.emplace_back(fmt::format("Step {}", step.step), step.nonfinite);
  }
  return pairs("Values that were not finite", entries);
}

std::string configuration(const std::string& yaml) {
  if (yaml.empty()) return {};
  return fmt::format("<section>\n<h2>Configuration</h2>\n<div class=\"panel\"><pre>{}</pre></div>\n</section>\n", html(yaml));
}

std::string head(std::string_view title) {
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
      "'unsafe-inline'; script-src 'unsafe-inline'\">\n"
      "<title>{}</title>\n<style>{}</style>\n</head>\n",
      html(title), kReportStyle);
}

}  // namespace

std::string report_html(const ReportContent& content) {
  return head(content.title) + "<body>\n<main>\n" + header(content) + curves(content.steps, loss_chart(content)) +
         rank_map(content) + nonfinite_steps(content.steps) + samples(content.samples) + configuration(content.config_yaml) +
         pairs("Environment", content.environment) +
         fmt::format(
             "<footer>Written by lora. This page needs no network.</footer>\n</main>\n"
             "<script>{}</script>\n</body>\n</html>\n",
             kReportScript);
}

}  // namespace lora::train
