#include "lora/train/schedule.h"

#include "lora/core/error.h"
#include "support.h"

using namespace lora;
using train::learning_rate;
using train::ScheduleOptions;

namespace {

ScheduleOptions schedule(const std::string& type, double power = 1) {
  return {.type = type, .lr = 0.1, .warmup_steps = 4, .total_steps = 12, .end = 0.01, .power = power};
}

struct Row {
  std::string type;
  double power;
  int64_t step;
  double rate;
};

}  // namespace

// lr 0.1, 4 warm-up steps, 12 in all, end 0.01, worked out by hand: n = step - 1, p = (n - 4) / 8.
TEST_CASE("learning rates follow the documented formulas", "[train]") {
  const std::vector<Row> table = {
      {"linear", 1, 1, 0},
      {"linear", 1, 2, 0.025},
      {"linear", 1, 4, 0.075},
      {"linear", 1, 5, 0.1},
      {"linear", 1, 7, 0.0775},
      {"linear", 1, 9, 0.055},
      {"linear", 1, 12, 0.02125},
      {"linear", 1, 13, 0.01},
      {"linear", 1, 1000, 0.01},
      {"constant", 1, 1, 0},
      {"constant", 1, 3, 0.05},
      {"constant", 1, 5, 0.1},
      {"constant", 1, 12, 0.1},
      {"constant", 1, 1000, 0.1},
      {"cosine", 1, 3, 0.05},
      {"cosine", 1, 5, 0.1},
      {"cosine", 1, 7, 0.0868198052},
      {"cosine", 1, 9, 0.055},
      {"cosine", 1, 11, 0.0231801948},
      {"cosine", 1, 13, 0.01},
      {"cosine", 1, 21, 0.01},
      {"polynomial", 1, 9, 0.055},
      {"polynomial", 2, 5, 0.1},
      {"polynomial", 2, 9, 0.0325},
      {"polynomial", 0.5, 11, 0.055},
      {"polynomial", 2, 13, 0.01},
      {"polynomial", 0.5, 14, 0.01},
      {"polynomial", 3, 15, 0.01},
  };
  for (const auto& row : table) {
    CAPTURE(row.type, row.power, row.step);
    CHECK(learning_rate(schedule(row.type, row.power), row.step) == Approx(row.rate).margin(1e-10));
  }
}

TEST_CASE("edges of the learning-rate schedule", "[train]") {
  SECTION("no warm-up starts at the full rate") {
    CHECK(learning_rate({.type = "cosine", .lr = 0.1, .total_steps = 10}, 1) == 0.1);
  }
  SECTION("a warm-up as long as the run leaves one step at the full rate, then end") {
    const ScheduleOptions options{.type = "linear", .lr = 0.1, .warmup_steps = 5, .total_steps = 3, .end = 0.01};
    CHECK(learning_rate(options, 3) == Approx(0.04));
    CHECK(learning_rate(options, 6) == 0.1);
    CHECK(learning_rate(options, 7) == 0.01);
  }
  SECTION("an unknown type is refused") {
    const auto text = testing::message_of<ConfigError>([] { learning_rate({.type = "triangle"}, 1); });
    CHECK(text.find("\"triangle\"") != std::string::npos);
  }
}
