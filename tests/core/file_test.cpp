#include "lora/core/file.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "lora/core/error.h"
#include "support.h"

using lora::IoError;
using lora::Path;
using lora::testing::message_of;
using lora::testing::ScratchFolder;

namespace {

void put(const Path& path, std::string_view text) { std::ofstream(path) << text; }

size_t count_entries(const Path& folder) {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder), {}));
}

/// The id of a process that has just ended.
pid_t ended_process() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  return child;
}

Path temporary_name(const Path& target, pid_t pid) { return target.string() + ".tmp-" + std::to_string(pid) + "-0"; }

}  // namespace

TEST_CASE("files are read whole or refused with the system's reason", "[core]") {
  const ScratchFolder scratch;
  const Path file = scratch.path() / "a";
  put(file, std::string("x\0y\r\n", 5));
  CHECK(lora::read_file(file) == std::string("x\0y\r\n", 5));
  CHECK(lora::read_file(file, 5).size() == 5);

  const auto over = message_of<IoError>([&] { lora::read_file(file, 4); });
  CHECK(over.find("4 bytes") != std::string::npos);
  const auto missing = message_of<IoError>([&] { lora::read_file(scratch.path() / "none"); });
  CHECK(missing.find("none]") != std::string::npos);
  CHECK(missing.find("No such file") != std::string::npos);
  message_of<IoError>([&] { lora::read_file(scratch.path()); });
  message_of<IoError>([&] { lora::read_file("/dev/zero"); });

  const Path pipe = scratch.path() / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  message_of<IoError>([&] { lora::read_file(pipe); });  // would block for ever if it were opened plainly
}

TEST_CASE("output files truncate or append", "[core]") {
  const ScratchFolder scratch;
  const Path file = scratch.path() / "out";
  put(file, "old and long");
  {
    lora::OutputFile out(file);
    out.write("new");
    out.write("", 0);
    out.commit();
  }
  CHECK(lora::read_file(file) == "new");
  {
    lora::OutputFile out(file, true);
    out.write("er");
  }
  CHECK(lora::read_file(file) == "newer");
}

TEST_CASE("a full disk is an error that names the file and the reason", "[core]") {
  lora::OutputFile out("/dev/full");
  const auto text = message_of<IoError>([&] { out.write("x"); });
  CHECK(text.find("/dev/full") != std::string::npos);
  CHECK(text.find("No space left") != std::string::npos);
}

TEST_CASE("a write that the system cuts short is reported", "[core]") {
  // The file size limit makes the first write short and the second fail.
  const ScratchFolder scratch;
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {1000, 1000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    try {
      lora::write_file_atomically(scratch.path() / "cut", std::string(5000, 'x'));
    } catch (const IoError& error) {
      ::_exit(std::string(error.what()).find("File too large") != std::string::npos ? 7 : 8);
    }
    ::_exit(9);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 7);
  CHECK(count_entries(scratch.path()) == 0);
}

TEST_CASE("atomic writing replaces the file and leaves nothing beside it", "[core]") {
  const ScratchFolder scratch;
  const Path file = scratch.path() / "f";
  lora::write_file_atomically(file, "one");
  lora::write_file_atomically(file, "two");
  CHECK(lora::read_file(file) == "two");
  CHECK(count_entries(scratch.path()) == 1);

  const Path folder = scratch.path() / "folder";
  std::filesystem::create_directory(folder);
  message_of<IoError>([&] { lora::write_file_atomically(folder, "x"); });
  message_of<IoError>([&] { lora::write_file_atomically(scratch.path() / "no" / "f", "x"); });
  CHECK(count_entries(scratch.path()) == 2);
}

TEST_CASE("an atomic directory appears with commit only", "[core]") {
  const ScratchFolder scratch;
  const Path target = scratch.path() / "deep" / "step-1/";
  {
    lora::AtomicDirectory directory(target);
    CHECK(directory.path().parent_path() == scratch.path() / "deep");
    CHECK(directory.path().filename().string().starts_with("step-1.tmp-" + std::to_string(::getpid()) + "-"));
    put(directory.path() / "a", "1");
    CHECK_FALSE(std::filesystem::exists(target));
  }
  CHECK(count_entries(scratch.path() / "deep") == 0);

  {
    lora::AtomicDirectory directory(target);
    std::filesystem::create_directory(directory.path() / "inner");
    put(directory.path() / "inner" / "a", "1");
    directory.commit();
  }
  CHECK(lora::read_file(target / "inner" / "a") == "1");
  CHECK(count_entries(scratch.path() / "deep") == 1);
}

TEST_CASE("an atomic directory replaces an older one whole", "[core]") {
  const ScratchFolder scratch;
  const Path target = scratch.path() / "adapter";
  std::filesystem::create_directory(target);
  put(target / "old", "1");
  {
    lora::AtomicDirectory directory(target);
    put(directory.path() / "new", "2");
    CHECK(std::filesystem::exists(target / "old"));
    directory.commit();
    CHECK(count_entries(scratch.path()) == 1);
  }
  CHECK_FALSE(std::filesystem::exists(target / "old"));
  CHECK(lora::read_file(target / "new") == "2");
}

TEST_CASE("several atomic directories for one target do not meet", "[core]") {
  const ScratchFolder scratch;
  const Path target = scratch.path() / "t";
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      lora::write_file_atomically(scratch.path() / "f", std::to_string(i));
      const lora::AtomicDirectory directory(target);
      put(directory.path() / std::to_string(i), "x");
      if (count_entries(directory.path()) != 1) std::abort();
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(count_entries(scratch.path()) == 1);
}

TEST_CASE("a directory that cannot be written is found out early", "[core]") {
  const ScratchFolder scratch;
  lora::require_writable(scratch.path() / "made" / "deep");
  CHECK(count_entries(scratch.path() / "made" / "deep") == 0);
  put(scratch.path() / "file", "");
  message_of<IoError>([&] { lora::require_writable(scratch.path() / "file"); });
  message_of<IoError>([&] { lora::require_writable("/proc/self"); });
}

TEST_CASE("only leftovers of ended processes are removed", "[core]") {
  const ScratchFolder scratch;
  const Path base = scratch.path() / "step-3";
  const Path stale_folder = temporary_name(base, ended_process());
  std::filesystem::create_directory(stale_folder);
  put(stale_folder / "a", "1");
  const Path stale_file = temporary_name(scratch.path() / "config.yaml", ended_process());
  put(stale_file, "1");

  std::vector<Path> kept = {temporary_name(base, ::getpid()), temporary_name(base, 1), base};
  const std::string dead = std::to_string(ended_process());
  for (const char* name : {"x.tmp-", "x.tmp-abc-1", "x.tmp--5-1", "x.tmp-0-1", "x.tmp-99999999999999999999-1", "tmp-1-1"}) {
    kept.push_back(scratch.path() / name);
  }
  kept.push_back(scratch.path() / ("x.tmp-" + dead));
  kept.push_back(scratch.path() / ("x.tmp-" + dead + "-"));
  kept.push_back(scratch.path() / ("x.tmp-" + dead + "-1.txt"));
  for (const Path& path : kept) put(path, "1");

  lora::remove_stale_temporaries(scratch.path());
  CHECK_FALSE(std::filesystem::exists(stale_folder));
  CHECK_FALSE(std::filesystem::exists(stale_file));
  for (const Path& path : kept) {
    INFO(path);
    CHECK(std::filesystem::exists(path));
  }
  lora::remove_stale_temporaries(scratch.path() / "missing");
}

TEST_CASE("digests are XXH3-128", "[core]") {
  // The value that the xxHash project gives for empty input with seed 0.
  CHECK(lora::digest({}) == "99aa06d3014798d86001c324468d497f");
  const ScratchFolder scratch;
  std::string text(3'000'001, 'x');
  text[2'500'000] = 'y';
  put(scratch.path() / "f", text);
  CHECK(lora::file_digest(scratch.path() / "f") == lora::digest(std::as_bytes(std::span(text))));
  put(scratch.path() / "empty", "");
  CHECK(lora::file_digest(scratch.path() / "empty") == lora::digest({}));
  message_of<IoError>([&] { lora::file_digest(scratch.path() / "none"); });
}

TEST_CASE("pieces are written and digested like their whole", "[core]") {
  const ScratchFolder scratch;
  const std::vector<std::string_view> pieces = {"one", "", std::string_view("\0two", 4), "three"};
  const std::string whole("one\0twothree", 12);
  lora::write_file_atomically(scratch / "f", pieces);
  CHECK(lora::read_file(scratch / "f") == whole);
  CHECK(lora::digest_of_pieces(pieces) == lora::digest(std::as_bytes(std::span(whole))));
}

TEST_CASE("streams are written to, and links keep leading where they led", "[core]") {
  const ScratchFolder folder;
  const Path pipe = folder / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  std::string read;
  std::thread reader([&] {
    std::ifstream stream(pipe);
    read.assign(std::istreambuf_iterator<char>(stream), {});
  });
  lora::write_file_atomically(pipe, "text");
  reader.join();
  CHECK(read == "text");
  CHECK(lora::is_stream(pipe));
  CHECK_THROWS_AS(lora::AtomicDirectory(pipe), IoError);

  put(folder / "target", "old");
  std::filesystem::create_symlink(folder / "target", folder / "link");
  lora::write_file_atomically(folder / "link", "new");
  CHECK(std::filesystem::is_symlink(folder / "link"));
  CHECK(lora::read_file(folder / "target") == "new");
  std::filesystem::create_directory(folder / "far");
  std::filesystem::create_directory_symlink(folder / "far", folder / "near");
  {
    lora::AtomicDirectory directory(folder / "near");
    put(directory.path() / "file", "x");
    directory.commit();
  }
  CHECK(std::filesystem::is_symlink(folder / "near"));
  CHECK(std::filesystem::exists(folder / "far/file"));
}
