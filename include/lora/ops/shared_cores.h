#pragma once

#include <memory>

namespace lora::ops {

/// Keeps a program fast on cores that it shares: have one in `main` for as long as the program computes.
///
/// Threads that share an operation wait for each other by spinning, for some 20 ms unless libgomp is told otherwise. On cores of
/// one's own nothing is faster. Where other programs want the same cores, the thread that is waited for stands still meanwhile,
/// and steps take several times as long. This looks a few times a second at who uses the cores that the process may run on, and
/// while others do, threads wait briefly and then sleep.
///
/// Does nothing where the user has decided (GOMP_SPINCOUNT or OMP_WAIT_POLICY is set), and has no effect where /proc/stat is
/// missing or the OpenMP runtime is not libgomp.
class SharedCores {
 public:
  SharedCores();
  ~SharedCores();
  SharedCores(const SharedCores&) = delete;
  SharedCores& operator=(const SharedCores&) = delete;

 private:
  class Watch;
  std::unique_ptr<Watch> watch_;
};

}  // namespace lora::ops
