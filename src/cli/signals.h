// SIGINT, SIGTERM and SIGUSR1 ask for a stop after the current step; a second one ends the program at once.
#pragma once

namespace lora::cli {

/// Installs the handlers for the rest of the program.
void catch_stop_signals();

/// The signal that asked for a stop, or 0.
int stop_signal();

/// Exit code for a run that `signal` stopped.
int exit_code_of_signal(int signal);

/// Throws Stopped when a stop was asked for: for the phases before the first step.
void check_for_stop();

/// Ends the program with the signal's exit code and without an error message.
struct Stopped {
  int signal;
};

}  // namespace lora::cli
