// The other side of `lora bench`: a program that trains the same model on the same rows, driven over pipes.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "lora/core/path.h"

namespace lora::cli {

/// Speaks the protocol of benchmarks/peers/peft_step.py: a request per line, an answer in JSON per line.
class BenchPeer {
 public:
  /// Starts the program (found along PATH) with `threads` for OpenMP. Throws IoError when it cannot be started.
  BenchPeer(const std::vector<std::string>& command, int threads);
  ~BenchPeer();
  BenchPeer(const BenchPeer&) = delete;
  BenchPeer& operator=(const BenchPeer&) = delete;

  struct Step {
    double wall_seconds = 0, cpu_seconds = 0, first_step_seconds = 0;
    uint64_t peak_memory_bytes = 0;
  };
  Step step();
  /// Writes the gradients of its rows to `file` and gives their loss.
  double gradients(const Path& file);
  /// Greedy decoding of `count` tokens.
  Step generate(int64_t count);

 private:
  /// The answer's line. Throws IoError when the program has ended.
  std::string ask(const std::string& request);

  std::string command_;
  pid_t process_ = -1;
  int to_ = -1, from_ = -1;
  std::string unread_;
};

}  // namespace lora::cli
