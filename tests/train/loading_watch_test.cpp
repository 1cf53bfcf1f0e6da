#include "train/loading_watch.h"

#include "catch.h"

using lora::train::LoadingWatch;
using lora::train::StepResult;

namespace {

using Workers = LoadingWatch::Workers;

StepResult step_of(double step, double waited, double read, double transformed, double copied = 0) {
  StepResult result;
  result.step_seconds = step;
  result.data_seconds = waited;
  result.data_read_seconds = read;
  result.data_transform_seconds = transformed;
  result.copy_seconds = copied;
  return result;
}

/// The lines of `count` equal steps after a first one, and the step at which the first line came.
struct Said {
  std::vector<std::string> lines;
  int first_at = 0;
};

Said say(int count, const StepResult& step, const Workers& workers = {1, true}) {
  LoadingWatch watch;
  Said said;
  for (int i = 0; i <= count; ++i) {
    const auto line = watch.add(step, workers);
    if (line && said.lines.empty()) said.first_at = i;
    if (line) said.lines.push_back(*line);
  }
  return said;
}

bool names(const StepResult& step, const Workers& workers, std::string_view cause, std::string_view setting) {
  const auto said = say(50, step, workers);
  REQUIRE(said.lines.size() == 1);
  INFO(said.lines[0]);
  CHECK(said.lines[0].starts_with("[data.loader] "));
  CHECK(said.lines[0].find('\n') == std::string::npos);
  CHECK(said.lines[0].find(cause) != std::string::npos);
  CHECK(said.lines[0].find(setting) != std::string::npos);
  return true;
}

}  // namespace

TEST_CASE("loading is noticed above 5 % of 50 steps, once", "[train]") {
  const auto said = say(500, step_of(0.9, 0.1, 1, 0));
  CHECK(said.lines.size() == 1);
  CHECK(said.first_at == 50);  // the first step does not count
  CHECK(said.lines[0].find("10 %") != std::string::npos);
  CHECK(say(49, step_of(0.9, 0.1, 1, 0)).lines.empty());
  CHECK(say(500, step_of(0.96, 0.04, 1, 0)).lines.empty());
  CHECK(say(500, step_of(0.0, 0.0, 0, 0)).lines.empty());
}

TEST_CASE("only the last 50 steps count, and the first wait does not", "[train]") {
  LoadingWatch watch;
  CHECK_FALSE(watch.add(step_of(0.1, 100, 1, 0), {1, true}));
  for (int i = 0; i < 200; ++i) CHECK_FALSE(watch.add(step_of(1, 0.01, 1, 0), {1, true}));
  int steps = 1;
  while (!watch.add(step_of(1, 0.5, 1, 0), {1, true})) ++steps;
  CHECK(steps == 5);  // 5 x 0.5 of 50 x 1 s
}

TEST_CASE("the line names the cause and the setting to change", "[train]") {
  names(step_of(0.1, 0.3, 0.39, 0.01), {0, false}, "reading rows", "data.loader.workers: auto");
  names(step_of(0.1, 0.3, 0.39, 0.01), {1, false}, "reading rows", "data.loader.workers: 1");
  names(step_of(0.1, 0.3, 0.1, 1.0), {2, false}, "transforming rows", "data.loader.workers: 2");
  names(step_of(0.1, 0.3, 3.2, 0.1), {8, true}, "reading rows", "data.cache_dir");
  names(step_of(0.1, 0.3, 0.1, 3.2), {8, true}, "transforming rows", "data.loader.workers above the 8");
  names(step_of(0.9, 0.1, 0.5, 0.2), {1, true}, "reading rows", "data.loader.prefetch");
  names(step_of(0.9, 0.01, 0.5, 0.2, 0.1), {1, true}, "copying", "train.micro_batch");
}
