#include "cli/signals.h"

#include <unistd.h>

#include <csignal>

namespace lora::cli {
namespace {

volatile std::sig_atomic_t asked_by = 0;

extern "C" void remember_signal(int signal) {
  if (asked_by != 0) _exit(128 + signal);
  asked_by = signal;
}

}  // namespace

void catch_stop_signals() {
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) {
    struct sigaction action {};
    action.sa_handler = remember_signal;
    sigaction(signal, &action, nullptr);
  }
}

int stop_signal() { return asked_by; }

int exit_code_of_signal(int signal) { return 128 + signal; }

void check_for_stop() {
  if (asked_by != 0) throw Stopped{asked_by};
}

}  // namespace lora::cli
