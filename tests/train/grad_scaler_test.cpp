#include "lora/train/grad_scaler.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <map>

#include "lora/core/error.h"
#include "lora/core/random.h"
#include "support.h"

using namespace lora;
using train::GradScaler;
using train::GradScalerOptions;

namespace {

/// The automaton as MindSpore's DynamicLossScaleUpdateCell has it: it counts steps from one and
/// remembers the last step at which the scale changed. The upper bound is ours.
struct MindSporeScale {
  double scale, factor, min;
  int64_t window, current = 1, last = 0;

  void update(bool overflow) {
    if (overflow) {
      scale = std::max(scale / factor, min);
      last = current;
    } else if (current - last >= window) {
      scale = std::min(scale * factor, 0x1p100);
      last = current;
    }
    ++current;
  }
};

GradScalerOptions random_options(SplitMix64& random) {
  const double min = std::pow(2.0, static_cast<double>(random.below(8)) - 4);
  return {.enabled = true,
          .init = min * std::pow(2.0, static_cast<double>(random.below(20))),
          .factor = random.below(2) == 0 ? 2.0 : 1.5 + random.uniform(),
          .min = min,
          .window = static_cast<int64_t>(1 + random.below(7))};
}

}  // namespace

TEST_CASE("the loss scale equals an independent automaton on 10,000 random patterns", "[train]") {
  SplitMix64 random(11);
  int64_t differences = 0, floors = 0, growths = 0;
  for (int pattern = 0; pattern < 10000; ++pattern) {
    const auto options = random_options(random);
    const double overflow_rate = random.uniform() * 0.6;
    GradScaler scaler(options);
    MindSporeScale expected{options.init, options.factor, options.min, options.window};
    for (int step = 0; step < 60; ++step) {
      if (random.below(10) == 0) {  // saved and restored at a random step
        const auto saved = scaler.state();
        scaler = GradScaler(options);
        scaler.load_state(saved);
      }
      const bool overflow = random.uniform() < overflow_rate;
      const double before = scaler.scale();
      scaler.update(overflow);
      expected.update(overflow);
      differences += scaler.scale() != expected.scale;
      floors += overflow && scaler.scale() == options.min;
      growths += scaler.scale() > before;
    }
  }
  CHECK(differences == 0);
  CHECK(floors > 1000);
  CHECK(growths > 1000);
}

TEST_CASE("the loss scale stays a usable number in a storm of either kind", "[train]") {
  GradScaler scaler({.enabled = true, .init = 65536, .min = 0.5, .window = 1});
  for (int i = 0; i < 200; ++i) scaler.update(/*overflow=*/true);
  CHECK(scaler.scale() == 0.5);
  CHECK_FALSE(scaler.can_back_off());
  for (int i = 0; i < 2000; ++i) scaler.update(/*overflow=*/false);
  CHECK(scaler.scale() == GradScaler::kMaxScale);
  const auto gradient = at::ones({2});
  CHECK(scaler.unscale({gradient}));
  CHECK(gradient[0].item<double>() == std::pow(2.0, -100));
}

TEST_CASE("a fixed or switched-off scale does not move", "[train]") {
  GradScaler fixed({.enabled = true, .dynamic = false, .init = 128});
  GradScaler off({.enabled = false, .init = 128});
  for (GradScaler* scaler : {&fixed, &off}) {
    const double scale = scaler->scale();
    for (int i = 0; i < 3000; ++i) scaler->update(i % 3 == 0);
    CHECK(scaler->scale() == scale);
    CHECK_FALSE(scaler->can_back_off());
  }
  CHECK(fixed.scale() == 128);
  CHECK(off.scale() == 1);
}

TEST_CASE("losses are scaled and gradients unscaled", "[train]") {
  const GradScaler scaler({.enabled = true, .init = 1024});
  CHECK(scaler.scaled(at::scalar_tensor(0.5)).item<double>() == 512);
  const auto dtype = GENERATE(at::kFloat, at::kDouble);
  const std::vector<at::Tensor> gradients = {at::full({3}, 1024, dtype), at::full({2, 2}, 1, dtype)};
  CHECK(scaler.unscale(gradients));
  CHECK(gradients[0].equal(at::ones({3}, dtype)));
  CHECK(gradients[1].equal(at::full({2, 2}, 1.0 / 1024, dtype)));
  CHECK(scaler.unscale({}));
}

TEST_CASE("one value that is not finite is seen wherever it stands", "[train]") {
  SplitMix64 random(5);
  for (int i = 0; i < 100; ++i) {
    const GradScaler scaler({.enabled = i % 2 == 0, .init = 256});
    std::vector<at::Tensor> gradients = {at::ones({5, 7}), at::ones({3}), at::ones({64})};
    auto flat = gradients[random.below(3)].view(-1);
    const double bad = i % 3 == 0 ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
    flat[static_cast<int64_t>(random.below(static_cast<uint64_t>(flat.numel())))] = i % 5 == 0 ? -bad : bad;
    CHECK_FALSE(scaler.unscale(gradients));
  }
}

TEST_CASE("options and states that make no sense are refused", "[train]") {
  CHECK_THROWS_AS(GradScaler({.enabled = true, .init = 1, .min = 2}), ConfigError);
  CHECK_THROWS_AS(GradScaler({.enabled = true, .min = 0}), ConfigError);
  CHECK_THROWS_AS(GradScaler({.enabled = true, .init = 1e300}), ConfigError);
  CHECK_THROWS_AS(GradScaler({.enabled = true, .factor = 1}), ConfigError);
  CHECK_THROWS_AS(GradScaler({.enabled = true, .window = 0}), ConfigError);
  GradScaler scaler({.enabled = true});
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double scale : {0.0, -1.0, nan, 1e300}) {
    CHECK_THROWS_AS(scaler.load_state({scale, 0}), FormatError);
  }
  CHECK_THROWS_AS(scaler.load_state({1, -1}), FormatError);
  CHECK(scaler.scale() == 65536);
}

TEST_CASE("a saved scale is taken by a scaler that adapts, and by no other", "[train]") {
  GradScaler adapts({.enabled = true}), fixed({.enabled = true, .dynamic = false, .init = 128}), off({});
  for (GradScaler* scaler : {&adapts, &fixed, &off}) scaler->load_state({512, 3});
  CHECK(adapts.scale() == 512);
  CHECK(fixed.scale() == 128);
  CHECK(off.scale() == 1);
}

// The scales that ChatGLM's recipe logged, each after its step's update; the numbers are in the recipe's article.
TEST_CASE("a loss scale that begins at 2^32 falls as the published run's did", "[train]") {
  GradScaler scaler({.enabled = true, .init = 4294967296, .factor = 2, .min = 1, .window = 1000});
  int64_t skipped = 0;
  std::map<int64_t, double> after;
  for (int64_t step = 1; step <= 124; ++step) {
    const bool overflow = scaler.scale() > 0x1p14;
    skipped += overflow;
    scaler.update(overflow);
    after[step] = scaler.scale();
  }
  CHECK(after[4] == 0x1p28);
  CHECK(after[8] == 0x1p24);
  CHECK(after[17] == 0x1p15);
  for (int64_t step = 18; step <= 124; ++step) CHECK(after[step] == 0x1p14);
  CHECK(skipped == 18);
}
