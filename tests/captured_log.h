// What the library logs while an action runs.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include "support.h"

namespace lora::testing {

/// Text that `action` writes to stderr.
template <class Action>
std::string captured_log(Action&& action) {
  const ScratchFolder folder;
  const Path file = folder.write("log", "");
  std::fflush(stderr);
  const int kept = ::dup(STDERR_FILENO);
  const int target = ::open(file.c_str(), O_WRONLY | O_APPEND);
  ::dup2(target, STDERR_FILENO);
  ::close(target);
  action();
  std::fflush(stderr);
  ::dup2(kept, STDERR_FILENO);
  ::close(kept);
  std::ifstream stream(file);
  return {std::istreambuf_iterator<char>(stream), {}};
}

}  // namespace lora::testing
