#include "cli/bench_peer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "core/check.h"
#include "formats/json.h"
#include "lora/core/log.h"

extern char** environ;

namespace lora::cli {
namespace {

/// The environment with OMP_NUM_THREADS set, and when the peer was started.
std::vector<std::string> environment(int threads) {
  std::vector<std::string> all;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    if (!text.starts_with("OMP_NUM_THREADS=") && !text.starts_with("BENCH_STARTED=")) all.emplace_back(text);
  }
  const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  all.push_back(fmt::format("OMP_NUM_THREADS={}", threads));
  all.push_back(fmt::format("BENCH_STARTED={:.6f}", now));
  return all;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> all;
  for (auto& text : texts) all.push_back(text.data());
  all.push_back(nullptr);
  return all;
}

struct Pipe {
  std::array<int, 2> ends = {-1, -1};
  Pipe() { require<IoError>(::pipe2(ends.data(), O_CLOEXEC) == 0, "[--peer] a pipe must open; {}", std::strerror(errno)); }
};

/// A number of a peer's answer, or the first of a list.
double number(const formats::Json& answer, const char* field) {
  const auto found = answer.find(field);
  if (found == answer.end()) return 0;
  if (found->is_array() && !found->empty() && found->front().is_number()) return found->front().get<double>();
  return found->is_number() ? found->get<double>() : 0;
}

}  // namespace

BenchPeer::BenchPeer(const std::vector<std::string>& command, int threads)
    : command_(fmt::format("{}", fmt::join(command, " "))) {
  ::signal(SIGPIPE, SIG_IGN);  // a peer that ended is found by reading
  const Pipe requests, answers;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, requests.ends[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, answers.ends[1], STDOUT_FILENO);
  const bool shows_errors = log::level() == log::Level::kDebug;
  if (!shows_errors) posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  auto arguments = command;
  auto variables = environment(threads);
  const int error = ::posix_spawnp(&process_, command.front().c_str(), &actions, nullptr, pointers(arguments).data(),
                                   pointers(variables).data());
  posix_spawn_file_actions_destroy(&actions);
  ::close(requests.ends[0]);
  ::close(answers.ends[1]);
  to_ = requests.ends[1];
  from_ = answers.ends[0];
  if (error == 0) return;
  process_ = -1;
  ::close(to_);
  ::close(from_);
  fail<IoError>("[--peer] {} must start; {}; give a Python that has torch, transformers and peft", command.front(),
                std::strerror(error));
}

BenchPeer::~BenchPeer() {
  ::close(to_);  // the end of its requests ends it
  ::close(from_);
  if (process_ > 0) ::waitpid(process_, nullptr, 0);
}

std::string BenchPeer::ask(const std::string& request) {
  const std::string line = request + "\n";
  bool alive = ::write(to_, line.data(), line.size()) == static_cast<ssize_t>(line.size());
  std::array<char, 4096> buffer;
  while (alive && unread_.find('\n') == std::string::npos) {
    const ssize_t count = ::read(from_, buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    alive = count > 0;
    if (alive) unread_.append(buffer.data(), static_cast<size_t>(count));
  }
  require<IoError>(alive, "[--peer] the peer must answer {:?}; it ended; see what it says with -v, or run it by hand: {}",
                   request, command_);
  const size_t end = unread_.find('\n');
  const std::string answer = unread_.substr(0, end);
  unread_.erase(0, end + 1);
  return answer;
}

BenchPeer::Step BenchPeer::step() {
  const auto answer = formats::parse_json(ask("step 1"), "the peer's answer");
  return {number(answer, "wall"), number(answer, "cpu"), number(answer, "first_step_seconds"),
          static_cast<uint64_t>(number(answer, "peak_memory_bytes"))};
}

double BenchPeer::gradients(const Path& file) {
  return number(formats::parse_json(ask("grads " + file.string()), "the peer's answer"), "loss");
}

BenchPeer::Step BenchPeer::generate(int64_t count) {
  const auto answer = formats::parse_json(ask(fmt::format("generate {}", count)), "the peer's answer");
  return {number(answer, "wall"), number(answer, "cpu"), 0, static_cast<uint64_t>(number(answer, "peak_memory_bytes"))};
}

}  // namespace lora::cli
