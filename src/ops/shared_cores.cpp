#include "lora/ops/shared_cores.h"

#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <system_error>
#include <thread>

#include "ops/crowding.h"

namespace lora::ops {
namespace {

constexpr auto kBetweenLooks = std::chrono::milliseconds(200);

cpu_set_t allowed_cores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (sched_getaffinity(0, sizeof cores, &cores) != 0) CPU_ZERO(&cores);
  return cores;
}

double seconds_of(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// None where the system does not tell.
std::optional<CoreTimes> times_on(const cpu_set_t& cores) {
  std::ifstream stat("/proc/stat");
  const double tick = 1.0 / static_cast<double>(sysconf(_SC_CLK_TCK));
  CoreTimes times;
  bool found = false;
  for (std::string line; std::getline(stat, line) && line.starts_with("cpu");) {
    std::istringstream words(line.substr(3));
    int core = 0;
    double user = 0, nice = 0, system = 0, idle = 0, waiting = 0, irq = 0, soft_irq = 0;
    if (line.starts_with("cpu ") || !(words >> core >> user >> nice >> system >> idle >> waiting >> irq >> soft_irq)) continue;
    if (core < 0 || core >= CPU_SETSIZE || !CPU_ISSET(core, &cores)) continue;
    times.busy += tick * (user + nice + system + irq + soft_irq);
    times.idle += tick * (idle + waiting);
    found = true;
  }
  if (!found) return std::nullopt;
  times.own = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
  times.clock = seconds_of(CLOCK_MONOTONIC);
  return times;
}

/// A team of threads, asleep, from construction to destruction. libgomp lets all threads of a process spin for some microseconds
/// only while the process has more of them than cores.
class SleepingTeam {
 public:
  explicit SleepingTeam(int threads)
      : leader_([threads](const std::stop_token& stop) {
          std::atomic<int> present = 0;
#pragma omp parallel num_threads(threads)
          ++present;
          std::mutex mutex;
          std::unique_lock lock(mutex);
          std::condition_variable_any().wait(lock, stop, [] { return false; });
        }) {
  }

 private:
  std::jthread leader_;  // the team ends with the thread that leads it
};

}  // namespace

class SharedCores::Watch {
 public:
  Watch(const cpu_set_t& cores, const CoreTimes& now)
      : thread_([cores, now](const std::stop_token& stop) { watch(cores, now, stop); }) {}

 private:
  static void watch(const cpu_set_t& cores, CoreTimes before, const std::stop_token& stop) {
    Crowding crowding;
    std::optional<SleepingTeam> team;
    std::mutex mutex;
    std::unique_lock lock(mutex);
    std::condition_variable_any woken;
    while (!woken.wait_for(lock, stop, kBetweenLooks, [&] { return stop.stop_requested(); })) {
      const auto now = times_on(cores);
      if (!now) return;
      const bool is_crowded = crowding.after(use_between(before, *now));
      before = *now;
      if (is_crowded == team.has_value()) continue;
      if (!is_crowded) {
        team.reset();
        continue;
      }
      try {
        team.emplace(CPU_COUNT(&cores) + 1);
      } catch (const std::system_error&) {
        return;  // no more threads may be started: everybody waits as before
      }
    }
  }

  std::jthread thread_;
};

SharedCores::SharedCores() {
  if (std::getenv("GOMP_SPINCOUNT") != nullptr || std::getenv("OMP_WAIT_POLICY") != nullptr) return;
  const cpu_set_t cores = allowed_cores();
  if (const auto now = times_on(cores)) watch_ = std::make_unique<Watch>(cores, *now);
}

SharedCores::~SharedCores() = default;

}  // namespace lora::ops
