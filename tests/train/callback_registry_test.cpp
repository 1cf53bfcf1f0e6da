#include "lora/train/callback_registry.h"

#include "lora/core/error.h"
#include "support.h"

using namespace lora;
using testing::message_of;
using train::AfterStep;

namespace {

/// Stops after the step whose number is that of the run's last but one.
train::RunCallback stop_early(const train::CallbackContext& run) {
  return [last = run.total_steps - 1](const train::StepResult& result) {
    return result.step < last ? AfterStep::kGoOn : AfterStep::kStop;
  };
}

/// Once for the whole program: the table is the process's.
void register_once() {
  static const bool done = [] {
    train::register_callback("stop_early", stop_early);
    train::register_callback("nothing", [](const train::CallbackContext&) { return train::RunCallback(); });
    return true;
  }();
  REQUIRE(done);
}

train::StepResult result_of(int64_t step) {
  train::StepResult result;
  result.step = step;
  return result;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a callback is made for its run, by its name", "[train]") {
  register_once();
  const auto of_ten = train::make_callback("stop_early", {.total_steps = 10}),
             of_three = train::make_callback("stop_early", {.total_steps = 3});
  CHECK(of_ten(result_of(2)) == AfterStep::kGoOn);
  CHECK(of_three(result_of(2)) == AfterStep::kStop);
  CHECK(train::callback_names() == std::vector<std::string>{"stop_early", "nothing"});
}

TEST_CASE("a callback that nobody knows names the nearest, one that is not made is an error", "[train]") {
  register_once();
  const auto unknown = message_of<ConfigError>([] { train::make_callback("stop_erly", {}); });
  CHECK(contains(unknown, "found \"stop_erly\"; it knows stop_early"));
  CHECK(contains(message_of<ConfigError>([] { train::make_callback("nothing", {}); }), "the factory of \"nothing\""));
}

TEST_CASE("callbacks have names of their own, and factories", "[train]") {
  register_once();
  const auto before = train::callback_names();
  CHECK(contains(message_of<ConfigError>([] { train::register_callback("stop_early", stop_early); }),
                 "found a second \"stop_early\""));
  for (const char* name : {"", "- stop", "two words", "3", "a:b", "\xe5\x81\x9c"}) {
    CHECK_THROWS_AS(train::register_callback(name, stop_early), ConfigError);
  }
  CHECK_THROWS_AS(train::register_callback("other", nullptr), ConfigError);
  CHECK(train::callback_names() == before);
}
