// Cuts and scores rows for tests/reference/compare_eval.py, and says how long it takes.
//   eval_rows SEGMENTER [DICTIONARY] < rows.jsonl > results.jsonl
// A row is {"prediction": ..., "reference": ...}; its result {"tokens": [[...], [...]], "scores":
// {name: percent, ...}}.
#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "formats/json.h"
#include "lora/core/stopwatch.h"
#include "lora/core/text.h"
#include "lora/eval/metric_set.h"

namespace {

using lora::formats::Json;
using Rows = std::vector<std::pair<std::string, std::string>>;

Rows read_rows() {
  Rows rows;
  for (std::string line; std::getline(std::cin, line);) {
    const Json row = lora::formats::parse_json(line, fmt::format("stdin:{}", rows.size() + 1));
    rows.emplace_back(row.at("prediction").get<std::string>(), row.at("reference").get<std::string>());
  }
  return rows;
}

void say_speed(const char* what, size_t num_rows, double seconds) {
  fmt::print(stderr, "{}: {} rows in {:.3f} s, {:.0f} rows/s\n", what, num_rows, seconds,
             static_cast<double>(num_rows) / seconds);
}

std::vector<Json> scored_one_by_one(const Rows& rows, const lora::eval::MetricOptions& options) {
  const std::vector<std::string> names = {"rouge", "bleu4"};
  std::vector<Json> results;
  for (const auto& [prediction, reference] : rows) {
    lora::eval::MetricSet metrics({}, names, options);
    metrics.add(prediction, reference);
    Json result;
    result["tokens"] = Json::array({Json(options.segmenter->cut(prediction)), Json(options.segmenter->cut(reference))});
    for (const auto& [name, value] : metrics.scores()) result["scores"][name] = value;
    results.push_back(std::move(result));
  }
  return results;
}

void measure(const Rows& rows, const lora::eval::MetricOptions& options) {
  lora::Stopwatch cutting;
  size_t num_tokens = 0;
  for (const auto& [prediction, reference] : rows) {
    num_tokens += options.segmenter->cut(prediction).size() + options.segmenter->cut(reference).size();
  }
  say_speed(fmt::format("{} tokens", num_tokens).c_str(), rows.size(), cutting.seconds());
  const std::vector<std::string> names = {"rouge", "bleu4", "exact_match"};
  for (const std::string& name : names) {
    const auto metric = lora::eval::MetricRegistry().make(name, options);
    lora::Stopwatch scoring;
    for (const auto& [prediction, reference] : rows) metric->add(prediction, reference);
    say_speed(name.c_str(), rows.size(), scoring.seconds());
  }
}

void run(const std::string& segmenter, const std::string& dictionary) {
  lora::Stopwatch loading;
  const lora::eval::MetricOptions options = {.segmenter = lora::eval::make_segmenter(segmenter, dictionary)};
  fmt::print(stderr, "segmenter made in {:.3f} s\n", loading.seconds());
  const Rows rows = read_rows();
  measure(rows, options);
  for (const Json& result : scored_one_by_one(rows, options)) fmt::print("{}\n", result.dump());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(argc > 1 ? argv[1] : "char", argc > 2 ? argv[2] : "");
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
