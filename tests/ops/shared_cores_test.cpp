#include "lora/ops/shared_cores.h"

#include <chrono>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <thread>

#include "catch.h"
#include "ops/crowding.h"
#include "variable.h"

using namespace lora;
using lora::testing::Variable;

namespace {

/// What becomes of `crowding` when every one of `looks` looks finds `use`.
bool after_looks(ops::Crowding& crowding, const ops::CoreUse& use, int looks) {
  bool is_crowded = false;
  for (int i = 0; i < looks; ++i) is_crowded = crowding.after(use);
  return is_crowded;
}

TEST_CASE("shared cores: their use is what was spent between two looks, by the clock", "[ops]") {
  const ops::CoreTimes before{.busy = 100, .idle = 50, .own = 20, .clock = 1000};
  const ops::CoreTimes after{.busy = 100.5, .idle = 50.1, .own = 20.3, .clock = 1000.2};
  const ops::CoreUse use = ops::use_between(before, after);
  CHECK(std::abs(use.own - 1.5) < 1e-9);
  CHECK(std::abs(use.others - 1.0) < 1e-9);
  CHECK(std::abs(use.idle - 0.5) < 1e-9);
  CHECK(ops::use_between(before, before).own == 0);
}

TEST_CASE("shared cores: crowded once other programs want half a core and none is free", "[ops]") {
  ops::Crowding crowding;
  CHECK_FALSE(crowding.after({.own = 1, .others = 1, .idle = 0}));  // one look may be chance
  CHECK(after_looks(crowding, {.own = 1, .others = 1, .idle = 0}, 3));
  // Between the two bounds it stays as it is.
  CHECK(after_looks(crowding, {.own = 1.6, .others = 0.4, .idle = 0}, 20));
  CHECK_FALSE(after_looks(crowding, {.own = 1.9, .others = 0.1, .idle = 0}, 20));
  CHECK_FALSE(after_looks(crowding, {.own = 1.6, .others = 0.4, .idle = 0}, 20));
}

TEST_CASE("shared cores: those with room for all are not crowded", "[ops]") {
  ops::Crowding crowding;
  CHECK_FALSE(after_looks(crowding, {.own = 8, .others = 6, .idle = 2}, 20));
  CHECK_FALSE(after_looks(crowding, {.own = 8, .others = 7.4, .idle = 0.6}, 20));
  CHECK(after_looks(crowding, {.own = 8, .others = 8, .idle = 0}, 20));
  CHECK(after_looks(crowding, {.own = 6, .others = 8, .idle = 2}, 20));
  CHECK_FALSE(after_looks(crowding, {.own = 6, .others = 3, .idle = 7}, 20));
}

TEST_CASE("shared cores: what others do while this process waits says nothing", "[ops]") {
  ops::Crowding crowding;
  CHECK_FALSE(after_looks(crowding, {.own = 0.05, .others = 1.95, .idle = 0}, 20));
  CHECK(after_looks(crowding, {.own = 1, .others = 1, .idle = 0}, 20));
  CHECK(after_looks(crowding, {.own = 0, .others = 0, .idle = 2}, 20));
}

int threads_now() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return static_cast<int>(std::distance(begin(tasks), end(tasks)));
}

/// Once their number stands still: a thread that has ended is listed for a moment longer.
int threads_here() {
  int last = -1, same = 0;
  for (int looks = 0; looks < 200 && same < 5; ++looks) {
    const int now = threads_now();
    same = now == last ? same + 1 : 0;
    last = now;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return last;
}

TEST_CASE("shared cores: watched by a thread, unless the user has decided how threads wait", "[ops]") {
  if (!std::filesystem::exists("/proc/stat") || !std::filesystem::exists("/proc/self/task")) {
    WARN("skipped: there is no /proc");
    return;
  }
  const Variable no_count("GOMP_SPINCOUNT", nullptr), no_policy("OMP_WAIT_POLICY", nullptr);
  const int before = threads_here();
  {
    const ops::SharedCores cores;
    CHECK(threads_here() == before + 1);
  }
  CHECK(threads_here() == before);
  const char* name = GENERATE("GOMP_SPINCOUNT", "OMP_WAIT_POLICY");
  const Variable decided(name, "passive");
  const ops::SharedCores cores;
  CHECK(threads_here() == before);
}

}  // namespace
