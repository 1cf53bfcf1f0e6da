#include "lora/train/report.h"

#include <cmath>
#include <limits>

#include "support.h"
#include "train/page_text.h"

using lora::testing::count;
using lora::testing::has;
using lora::testing::path_of;
using lora::train::report_html;
using lora::train::ReportContent;
using lora::train::StepResult;

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

ReportContent content_of(int64_t steps) {
  ReportContent content;
  content.title = "A run";
  for (int64_t i = 1; i <= steps; ++i) {
    StepResult step;
    step.step = i;
    step.loss = 3 + 1.0 / static_cast<double>(i);
    step.learning_rate = 2e-4;
    step.grad_norm = 0.5;
    step.tokens = 100;
    step.step_seconds = 0.1;
    step.data_seconds = 0.001;
    step.tokens_per_second = 1000;
    content.steps.push_back(step);
  }
  return content;
}

void check_whole_page(const std::string& html) {
  CHECK(html.starts_with("<!doctype html>"));
  CHECK(html.ends_with("</html>\n"));
  CHECK(count(html, "<figure") == 5);
  CHECK(count(html, "</figure>") == 5);
  CHECK_FALSE(has(html, "nan"));
  CHECK_FALSE(has(html, ">inf"));
  CHECK_FALSE(has(html, " inf"));
  for (const char* outside : {"http:", "https:", "src=", "href=", "@import", "url("}) {
    CHECK_FALSE(has(html, outside));
  }
}

}  // namespace

TEST_CASE("a report is one whole page, whatever the number of steps", "[train]") {
  for (const int64_t steps : {0, 1, 2, 19, 20, 21, 500}) {
    check_whole_page(report_html(content_of(steps)));
  }
}

TEST_CASE("a report of values that are not finite is whole too", "[train]") {
  ReportContent content = content_of(30);
  for (StepResult& step : content.steps) {
    step.loss = kNaN;
    step.grad_norm = std::numeric_limits<double>::infinity();
    step.tokens_per_second = kNaN;
    step.step_seconds = std::numeric_limits<double>::max();
    step.overflow = true;
  }
  content.eval_loss_before = 2;
  content.eval_loss_after = kNaN;
  const std::string html = report_html(content);
  check_whole_page(html);
  CHECK(has(html, "2.0000 → not finite"));
  CHECK(has(html, "30 without update"));
}

TEST_CASE("text from outside is escaped everywhere", "[train]") {
  const std::string bad = "<script>\"'&\x01\xff";
  const std::string good = "&lt;script&gt;&quot;&#39;&amp;\\x01\xEF\xBF\xBD";
  ReportContent content = content_of(1);
  content.title = content.config_yaml = bad;
  content.summary = content.environment = {{bad, bad}};
  content.samples = {{bad, bad, bad, bad}};
  content.steps[0].nonfinite = bad;
  const std::string html = report_html(content);
  CHECK_FALSE(has(html, "<script>\""));
  CHECK_FALSE(has(html, "\x01"));
  CHECK(count(html, good) == 2 + 1 + 4 + 4 + 1);  // the title stands in the head and in the body
}

TEST_CASE("the header says what the run did", "[train]") {
  ReportContent content = content_of(200);
  content.steps[3].overflow = true;
  content.steps[5].peak_bytes = 3u << 20;
  content.eval_loss_before = 4;
  content.eval_loss_after = 3;
  content.summary = {{"Trainable share", "1.25 %"}};
  const std::string html = report_html(content);
  CHECK(has(html, "4.0000 → 3.0000"));
  CHECK(has(html, "-25.0 %"));
  CHECK(has(html, "1 without update"));
  CHECK(has(html, "1,000 tokens/s"));
  CHECK(has(html, "20,000 tokens in all"));
  CHECK(has(html, "20.2 s"));
  CHECK(has(html, "3.0 MiB"));
  CHECK(has(html, "1.25 %"));
}

TEST_CASE("samples, configuration and environment are shown when there are any", "[train]") {
  ReportContent content = content_of(2);
  const std::string bare = report_html(content);
  for (const char* title : {"Sample generations", "Configuration", "Environment"}) {
    CHECK_FALSE(has(bare, std::string("<h2>") + title));
  }
  content.samples = {{"类型#裤", "的的", "阔腿裤", "宽松的阔腿裤"}};
  content.config_yaml = "train: {epochs: 1}\n";
  content.environment = {{"Machine", "two cores"}};
  const std::string html = report_html(content);
  for (const char* text : {"类型#裤", "的的", "阔腿裤", "宽松的阔腿裤", "<pre>train: {epochs: 1}", "two cores"}) {
    CHECK(has(html, text));
  }
}

TEST_CASE("held-out losses stand on the loss curve", "[train]") {
  ReportContent content = content_of(10);
  content.eval_loss_before = 5;
  content.steps[4].eval_loss = 4.5;
  content.eval_loss_after = 4;
  const std::string marks = path_of(report_html(content), "mark");
  CHECK(count(marks, "M") == 3);
  CHECK(marks.starts_with("M0.0 "));
  CHECK(has(marks, "M500.0 "));
  CHECK(has(marks, "M1000.0 "));
  content.steps[9].eval_loss = 4;  // measured after the last step: the same as at the end
  CHECK(count(path_of(report_html(content), "mark"), "M") == 3);
}
