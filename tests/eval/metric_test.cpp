#include "lora/eval/metric.h"

#include <map>
#include <string>
#include <vector>

#include "eval/percent.h"
#include "eval_fixture.h"
#include "lora/core/error.h"
#include "lora/eval/bleu.h"
#include "lora/eval/dict_segmenter.h"
#include "lora/eval/metric_set.h"
#include "lora/eval/rouge.h"

using lora::eval::MetricOptions;
using lora::eval::MetricRegistry;
using lora::eval::MetricSet;
using lora::eval::Score;
using lora::testing::message_of;
using Strings = std::vector<std::string>;

namespace {

Strings names_of(const std::vector<Score>& scores) {
  Strings names;
  for (const Score& score : scores) names.push_back(score.name);
  return names;
}

MetricOptions with_dictionary() {
  return {.segmenter = lora::eval::make_segmenter("dict", lora::testing::eval_reference("dictionary.txt"))};
}

double only_score(lora::eval::Metric& metric) {
  const std::vector<Score> scores = metric.scores();
  REQUIRE(scores.size() == 1);
  return scores.front().value;
}

void check_rounded(double fraction, const lora::formats::Json& expected) {
  CHECK(lora::eval::percent(fraction) == Approx(expected.get<double>()).epsilon(0).margin(1e-9));
}

}  // namespace

TEST_CASE("rows are rounded percents, the result is their mean", "[metric]") {
  const auto rows = lora::testing::read_json(lora::testing::eval_reference("scores.json"));
  const Strings names = {"rouge", "bleu4"};
  const MetricOptions options = with_dictionary();
  MetricSet all({}, names, options);
  std::map<std::string, double> sums;
  for (const auto& row : rows) {
    const auto prediction = row["prediction"].get<std::string>(), reference = row["reference"].get<std::string>();
    MetricSet one({}, names, options);
    one.add(prediction, reference);
    all.add(prediction, reference);
    for (const auto& [name, value] : one.scores()) {
      INFO(name << " " << prediction << " | " << reference);
      CHECK(value == row["rounded"][name].get<double>());
      sums[name] += row["rounded"][name].get<double>();
    }
  }
  CHECK(names_of(all.scores()) == Strings{"rouge-1", "rouge-2", "rouge-l", "bleu-4"});
  for (const auto& [name, value] : all.scores()) {
    CHECK(value == Approx(sums[name] / static_cast<double>(rows.size())).epsilon(1e-14));
  }
}

TEST_CASE("pairs of an advertisement data set with jieba's own tokens", "[metric]") {
  const auto file = lora::testing::outside_data("adgen/metric_goldens.json");
  if (!file) return;
  const auto rows = lora::testing::read_json(*file);
  REQUIRE(rows.size() == 20);
  for (const auto& row : rows) {
    const auto hypothesis = lora::testing::views_of(row["hyp_tokens"]), reference = lora::testing::views_of(row["ref_tokens"]);
    const auto scores = lora::eval::rouge(hypothesis, reference);
    const double bleu = lora::eval::bleu4(row["hyp"].get<std::string>(), row["ref"].get<std::string>());
    check_rounded(scores.rouge_1.f, row["scores"]["rouge-1"]);
    check_rounded(scores.rouge_2.f, row["scores"]["rouge-2"]);
    check_rounded(scores.rouge_l.f, row["scores"]["rouge-l"]);
    check_rounded(bleu, row["scores"]["bleu-4"]);
  }
}

TEST_CASE("exact match compares bytes", "[metric]") {
  const auto metric = MetricRegistry().make("exact_match");
  CHECK(only_score(*metric) == 0);
  metric->add("a", "a");
  metric->add("a", "a ");
  metric->add("", "");
  CHECK(only_score(*metric) == Approx(200. / 3).epsilon(1e-14));
  CHECK(names_of(metric->scores()) == Strings{"exact-match"});
}

TEST_CASE("empty predictions are rows with 0; no rows are 0", "[metric]") {
  const Strings names = {"rouge", "bleu4"};
  MetricSet metrics({}, names);
  for (const Score& score : metrics.scores()) CHECK(score.value == 0);
  metrics.add("白色", "白色");
  metrics.add("", "白色");
  metrics.add(" \n", "白色");
  metrics.add("白色", "");
  CHECK(metrics.scores()[0].value == 25);
  CHECK(metrics.scores()[3].value < 25);  // two characters have no triple
}

TEST_CASE("white space that a segmenter gives is no token of ROUGE", "[metric]") {
  const auto metric = MetricRegistry().make("rouge", with_dictionary());
  metric->add("白色 \r\n\u3000上衣", "白色上衣");
  for (const Score& score : metric->scores()) CHECK(score.value == 100);
}

TEST_CASE("scores are in the registry's order, names are checked", "[metric]") {
  MetricRegistry registry;
  CHECK(registry.names() == Strings{"rouge", "bleu4", "exact_match"});
  registry.register_metric("length", [](const MetricOptions&) {
    return lora::eval::mean_of_rows(
        {"length"}, [](auto prediction, auto) { return std::vector<double>{static_cast<double>(prediction.size())}; });
  });
  const Strings names = {"length", "bleu4", "rouge"};
  MetricSet metrics(registry, names);
  metrics.add("abc", "abc");
  metrics.add("abcde", "abc");
  CHECK(names_of(metrics.scores()) == Strings{"rouge-1", "rouge-2", "rouge-l", "bleu-4", "length"});
  CHECK(metrics.scores().back().value == 400);

  const auto unknown = message_of<lora::ConfigError>([&] { registry.make("blue4"); });
  CHECK(unknown.find("rouge, bleu4, exact_match, length; found \"blue4\"; did you mean bleu4?") != std::string::npos);
  const auto taken = message_of<lora::ConfigError>([&] { registry.register_metric("rouge", {}); });
  CHECK(taken.find("found \"rouge\"") != std::string::npos);
  CHECK_THROWS_AS(registry.register_metric("", {}), lora::ConfigError);
  const Strings twice = {"rouge", "rouge"};
  CHECK(message_of<lora::ConfigError>([&] { MetricSet(registry, twice); }).find("twice") != std::string::npos);
}

TEST_CASE("a registered metric is in every registry that is made afterwards", "[metric]") {
  const MetricRegistry before;
  lora::eval::register_metric("registered_length", [](const MetricOptions&) {
    return lora::eval::mean_of_rows(
        {"length"}, [](auto prediction, auto) { return std::vector<double>{0.01 * static_cast<double>(prediction.size())}; });
  });
  CHECK(before.names() == Strings{"rouge", "bleu4", "exact_match"});
  CHECK(MetricRegistry().names() == Strings{"rouge", "bleu4", "exact_match", "registered_length"});
  const auto metric = MetricRegistry().make("registered_length");
  metric->add("abc", "");
  CHECK(metric->scores().front().value == 3);
  const auto make = [](const MetricOptions&) { return lora::eval::mean_of_rows({"x"}, {}); };
  for (const char* name : {"", "rouge", "registered_length"})
    CHECK_THROWS_AS(lora::eval::register_metric(name, make), lora::ConfigError);
  CHECK_THROWS_AS(lora::eval::register_metric("nothing", {}), lora::ConfigError);
  CHECK(MetricRegistry().names().size() == 4);
  CHECK(message_of<lora::ConfigError>([] { MetricRegistry().make("registered"); }).find("did you mean registered_length?") !=
        std::string::npos);
}

TEST_CASE("a metric of rows gives a number for each of its names", "[metric]") {
  const auto metric = lora::eval::mean_of_rows({"a", "b"}, [](auto, auto) { return std::vector<double>{1}; });
  CHECK(message_of<lora::ConfigError>([&] { metric->add("", ""); }).find("must give 2 numbers; found 1") != std::string::npos);
}

TEST_CASE("rows beyond the limits are errors and do not count", "[metric]") {
  const std::string longer((4u << 20) + 1, 'x'), many(100'000, 'x');
  for (const char* name : {"rouge", "bleu4"}) {
    const auto metric = MetricRegistry().make(name);
    metric->add("abcd", "abcd");
    CHECK_THROWS_AS(metric->add(longer, "a"), lora::DataError);
    CHECK_THROWS_AS(metric->add("a", longer), lora::DataError);
    CHECK(metric->scores().back().value == 100);
  }
  CHECK_THROWS_AS(MetricRegistry().make("rouge")->add(many, many), lora::DataError);
}
