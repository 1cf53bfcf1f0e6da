#include "lora/train/metrics.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "lora/core/error.h"
#include "lora/core/file.h"
#include "support.h"

using lora::testing::message_of;
using lora::testing::ScratchFolder;
using lora::train::MetricsFile;
using lora::train::StepResult;
using lora::train::to_json_line;

namespace {

StepResult step_of(int64_t number) {
  StepResult result;
  result.step = number;
  result.epoch = 1;
  result.loss = 2.0 / 3 + static_cast<double>(number);
  result.learning_rate = 1e-5 / 3;
  result.grad_norm = 0.1;
  result.loss_scale = 65536;
  result.tokens = 1234567890123;
  result.targets = 56;
  result.step_seconds = 0.125;
  result.data_seconds = 5e-324;
  result.data_read_seconds = 0.25;
  result.data_transform_seconds = 1e-3 / 7;
  result.copy_seconds = 0.5;
  result.tokens_per_second = 1e22 / 7;
  result.peak_bytes = uint64_t{1} << 40;
  return result;
}

std::string lines_of(std::initializer_list<int64_t> numbers) {
  std::string text;
  for (const int64_t number : numbers) text += to_json_line(step_of(number)) + '\n';
  return text;
}

std::vector<int64_t> numbers_in(const lora::Path& path) {
  std::vector<int64_t> numbers;
  for (const StepResult& result : MetricsFile::read(path)) numbers.push_back(result.step);
  return numbers;
}

}  // namespace

TEST_CASE("a metrics line holds the documented fields", "[train]") {
  const auto line = nlohmann::json::parse(to_json_line(step_of(7)));
  std::set<std::string> keys;
  for (const auto& [key, value] : line.items()) keys.insert(key);
  CHECK(keys == std::set<std::string>{"step", "epoch", "loss", "lr", "grad_norm", "loss_scale", "overflow", "tokens", "targets",
                                      "step_seconds", "data_seconds", "data_read_seconds", "data_transform_seconds",
                                      "copy_seconds", "tokens_per_second", "peak_memory_bytes"});
  CHECK(line["step"] == 7);
  CHECK(line["lr"].get<double>() == 1e-5 / 3);
  CHECK(line["overflow"] == false);
  CHECK(line["peak_memory_bytes"] == 1099511627776);
}

TEST_CASE("fields that are not always there", "[train]") {
  StepResult result = step_of(1);
  result.reg_loss = 0.25;
  result.eval_loss = 1.5;
  result.is_best = true;
  result.nonfinite = "layer 3\xff";
  const auto line = nlohmann::json::parse(to_json_line(result));
  CHECK(line["reg_loss"] == 0.25);
  CHECK(line["eval_loss"] == 1.5);
  CHECK(line["best"] == true);
  CHECK(line["nonfinite"] == "layer 3\xEF\xBF\xBD");
}

TEST_CASE("numbers that JSON lacks are null, and read back as NaN", "[train]") {
  const ScratchFolder scratch;
  StepResult result = step_of(1);
  result.loss = std::numeric_limits<double>::quiet_NaN();
  result.grad_norm = std::numeric_limits<double>::infinity();
  CHECK(nlohmann::json::parse(to_json_line(result))["loss"].is_null());
  MetricsFile(scratch / "m.jsonl", 0).write(result);
  const auto steps = MetricsFile::read(scratch / "m.jsonl");
  REQUIRE(steps.size() == 1);
  CHECK(std::isnan(steps[0].loss));
  CHECK(std::isnan(steps[0].grad_norm));
}

TEST_CASE("metrics read back as the same numbers", "[train]") {
  const ScratchFolder scratch;
  StepResult written = step_of(3);
  written.overflow = true;
  written.reg_loss = 0.1 + 0.2;
  written.eval_loss = -0.0;
  written.nonfinite = "类型";
  MetricsFile(scratch / "m.jsonl", 0).write(written);
  const auto steps = MetricsFile::read(scratch / "m.jsonl");
  REQUIRE(steps.size() == 1);
  const StepResult& read = steps[0];
  CHECK(read.step == written.step);
  CHECK(read.epoch == written.epoch);
  CHECK(read.loss == written.loss);
  CHECK(read.reg_loss == written.reg_loss);
  CHECK(read.learning_rate == written.learning_rate);
  CHECK(read.grad_norm == written.grad_norm);
  CHECK(read.loss_scale == written.loss_scale);
  CHECK(read.overflow == written.overflow);
  CHECK(read.tokens == written.tokens);
  CHECK(read.targets == written.targets);
  CHECK(read.step_seconds == written.step_seconds);
  CHECK(read.data_seconds == written.data_seconds);
  CHECK(read.data_read_seconds == written.data_read_seconds);
  CHECK(read.data_transform_seconds == written.data_transform_seconds);
  CHECK(read.copy_seconds == written.copy_seconds);
  CHECK(read.tokens_per_second == written.tokens_per_second);
  CHECK(read.peak_bytes == written.peak_bytes);
  CHECK(read.eval_loss == written.eval_loss);
  CHECK(read.nonfinite == written.nonfinite);
}

TEST_CASE("a new metrics file replaces an old one", "[train]") {
  const ScratchFolder scratch;
  const auto path = scratch.write("m.jsonl", lines_of({1, 2, 3}));
  MetricsFile file(path, 0);
  CHECK(lora::read_file(path).empty());
  file.write(step_of(1));
  file.write(step_of(2));
  CHECK(lora::read_file(path) == lines_of({1, 2}));
}

TEST_CASE("resuming drops the lines after the checkpoint", "[train]") {
  const ScratchFolder scratch;
  const auto path = scratch.write("logs/m.jsonl", lines_of({1, 2, 3, 4}));
  MetricsFile(path, 2).write(step_of(3));
  CHECK(lora::read_file(path) == lines_of({1, 2, 3}));
}

TEST_CASE("a torn last line is dropped, however much of it there is", "[train]") {
  const ScratchFolder scratch;
  const std::string torn = lines_of({3});
  for (size_t length = 0; length + 1 < torn.size(); ++length) {
    const auto path = scratch.write("m.jsonl", lines_of({1, 2}) + torn.substr(0, length));
    CHECK(numbers_in(path) == std::vector<int64_t>{1, 2});
    if (length % 50 == 0) {
      MetricsFile(path, 2).write(step_of(3));
      CHECK(lora::read_file(path) == lines_of({1, 2, 3}));
    }
  }
}

TEST_CASE("a last line that lacks only its end counts", "[train]") {
  const ScratchFolder scratch;
  const std::string text = lines_of({1, 2});
  const auto path = scratch.write("m.jsonl", text.substr(0, text.size() - 1));
  CHECK(numbers_in(path) == std::vector<int64_t>{1, 2});
  MetricsFile(path, 2).write(step_of(3));
  CHECK(lora::read_file(path) == lines_of({1, 2, 3}));
}

TEST_CASE("a metrics file is created with its directory", "[train]") {
  const ScratchFolder scratch;
  MetricsFile file(scratch / "a/b/m.jsonl", 0);
  CHECK(std::filesystem::exists(scratch / "a/b/m.jsonl"));
}

TEST_CASE("lines that are no metrics are named", "[train]") {
  const ScratchFolder scratch;
  const std::string good = lines_of({1});
  const auto refused = [&](const std::string& line) {
    const auto path = scratch.write("m.jsonl", good + line + "\n" + good);
    return message_of<lora::FormatError>([&] { MetricsFile::read(path); });
  };
  CHECK(refused("not json").find("line 2") != std::string::npos);
  CHECK(refused("[1]").find("line 2") != std::string::npos);
  CHECK(refused("").find("line 2") != std::string::npos);
  CHECK(refused("{\"step\": 2}").find("epoch") != std::string::npos);
  const std::string line = to_json_line(step_of(2));
  const auto with = [&](std::string_view key, const nlohmann::json& value) {
    auto object = nlohmann::json::parse(line);
    object[std::string(key)] = value;
    return refused(object.dump());
  };
  CHECK(with("step", 2.5).find("step") != std::string::npos);
  CHECK(with("step", -1).find("step") != std::string::npos);
  CHECK(with("tokens", 1e300).find("tokens") != std::string::npos);
  CHECK(with("tokens", ~uint64_t{0}).find("tokens") != std::string::npos);
  CHECK(with("loss", "high").find("loss") != std::string::npos);
  CHECK(with("overflow", 0).find("overflow") != std::string::npos);
  CHECK(with("nonfinite", 0).find("nonfinite") != std::string::npos);
}

TEST_CASE("a metrics file that is not there cannot be read", "[train]") {
  const ScratchFolder scratch;
  CHECK_THROWS_AS(MetricsFile::read(scratch / "none.jsonl"), lora::IoError);
}
