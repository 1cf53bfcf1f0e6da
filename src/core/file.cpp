#include "lora/core/file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "core/check.h"

namespace lora {
namespace {

constexpr std::string_view kTemporaryMark = ".tmp-";

/// Throws IoError for the system call that just failed. `must` says what had to work.
[[noreturn]] void fail_system(const Path& path, std::string_view must, int error = errno) {
  fail<IoError>("[{}] {}; the system says: {}; check the path, its permissions and the free space", path.string(), must,
                std::generic_category().message(error));
}

[[noreturn]] void fail_system(const Path& path, std::string_view must, const std::error_code& error) {
  fail_system(path, must, error.value());
}

/// Repeats a system call that a signal interrupted.
template <class Call>
auto retry_interrupted(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

/// A descriptor that is only read, so that errors of closing it lose nothing.
class Descriptor {
 public:
  Descriptor(const Path& path, int flags) : value_(retry_interrupted([&] { return ::open(path.c_str(), flags | O_CLOEXEC); })) {
    if (value_ < 0) fail_system(path, "must be readable");
  }
  ~Descriptor() { ::close(value_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

/// Opens a regular file; anything else (a pipe would block for ever) is refused.
std::pair<std::unique_ptr<Descriptor>, uint64_t> open_regular(const Path& path) {
  auto descriptor = std::make_unique<Descriptor>(path, O_RDONLY | O_NONBLOCK);
  struct stat info = {};
  if (::fstat(descriptor->get(), &info) != 0) fail_system(path, "its size must be known");
  require<IoError>(S_ISREG(info.st_mode), "[{}] must be a regular file; found a directory or device; name a file", path.string());
  return {std::move(descriptor), static_cast<uint64_t>(info.st_size)};
}

/// Up to `size` bytes; fewer only at the end of the file.
size_t read_fully(const Descriptor& descriptor, const Path& path, char* data, size_t size) {
  size_t total = 0;
  while (total < size) {
    const ssize_t count = retry_interrupted([&] { return ::read(descriptor.get(), data + total, size - total); });
    if (count < 0) fail_system(path, "must be readable");
    if (count == 0) break;
    total += static_cast<size_t>(count);
  }
  return total;
}

void sync(const Path& path, int flags) {
  const Descriptor descriptor(path, flags);
  if (retry_interrupted([&] { return ::fsync(descriptor.get()); }) != 0) {
    fail_system(path, "must reach the disk");
  }
}

Path parent_of(const Path& path) {
  const Path parent = path.parent_path();
  return parent.empty() ? Path(".") : parent;
}

/// A name beside `target` that nothing has yet.
Path unused_name(const Path& target, std::string_view mark) {
  static std::atomic<uint64_t> counter = 0;
  while (true) {
    Path name = target;
    name += fmt::format("{}{}-{}", mark, ::getpid(), counter++);
    std::error_code error;
    if (std::filesystem::symlink_status(name, error).type() == std::filesystem::file_type::not_found) {
      return name;
    }
    if (error) fail_system(name, "its parent must be accessible", error);
  }
}

void rename_entry(const Path& from, const Path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    fail_system(to, fmt::format("must be replaceable by {}", from.string()));
  }
}

void remove_quietly(const Path& path) {
  std::error_code ignored;
  std::filesystem::remove_all(path, ignored);
}

/// Puts the directory `fresh` in the place of the directory `target`. Returns where the old one is.
Path exchange_directories(const Path& fresh, const Path& target) {
  if (::renameat2(AT_FDCWD, fresh.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) == 0) {
    return fresh;
  }
  if (errno != EINVAL && errno != ENOSYS) {
    fail_system(target, fmt::format("must be replaceable by {}", fresh.string()));
  }
  // This file system cannot exchange names. The old directory moves aside under a name that
  // remove_stale_temporaries leaves alone, so that a crash between the two renames loses nothing.
  const Path aside = unused_name(target, ".old-");
  rename_entry(target, aside);
  try {
    rename_entry(fresh, target);
  } catch (...) {
    ::rename(aside.c_str(), target.c_str());
    throw;
  }
  return aside;
}

void sync_tree(const Path& root) {
  std::error_code error;
  std::filesystem::recursive_directory_iterator entries(root, error), end;
  while (!error && entries != end) {
    const auto type = entries->symlink_status(error).type();
    if (error) break;
    if (type == std::filesystem::file_type::regular) sync(entries->path(), O_RDONLY);
    if (type == std::filesystem::file_type::directory) sync_directory(entries->path());
    entries.increment(error);
  }
  if (error) fail_system(root, "its files must be listable", error);
  sync_directory(root);
}

/// What a link leads to, where there is something; any other path as it is.
Path followed(const Path& path) {
  std::error_code error;
  if (!std::filesystem::is_symlink(path, error)) return path;
  const Path target = std::filesystem::canonical(path, error);
  return error ? path : target;
}

void write_pieces(const Path& path, std::span<const std::string_view> pieces) {
  OutputFile file(path);
  for (const std::string_view piece : pieces) file.write(piece);
  file.commit();
}

/// The process id in `<anything>.tmp-<pid>-<n>`; nothing for other names.
std::optional<pid_t> owner_of_temporary(std::string_view name) {
  const size_t mark = name.rfind(kTemporaryMark);
  if (mark == std::string_view::npos) return std::nullopt;
  const char* position = name.data() + mark + kTemporaryMark.size();
  const char* const end = name.data() + name.size();
  pid_t pid = 0;
  const auto after_pid = std::from_chars(position, end, pid);
  if (after_pid.ec != std::errc() || pid <= 0) return std::nullopt;
  position = after_pid.ptr;
  if (position == end || *position != '-') return std::nullopt;
  uint64_t number = 0;
  const auto after_number = std::from_chars(position + 1, end, number);
  if (after_number.ec != std::errc() || after_number.ptr != end) return std::nullopt;
  return pid;
}

bool is_running(pid_t pid) { return ::kill(pid, 0) == 0 || errno == EPERM; }

/// XXH3-128 of bytes that come in pieces.
class StreamedDigest {
 public:
  StreamedDigest() : state_(XXH3_createState(), XXH3_freeState) {
    if (!state_) throw std::bad_alloc();
    XXH3_128bits_reset(state_.get());
  }
  void add(const void* data, size_t size) { XXH3_128bits_update(state_.get(), data, size); }
  std::string hexadecimal() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_.get());
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  }

 private:
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_;
};

}  // namespace

std::string read_file(const Path& path, uint64_t max_bytes) {
  const auto [descriptor, size] = open_regular(path);
  require<IoError>(size <= max_bytes, "[{}] must have at most {} bytes; found {}; is it the right file?", path.string(),
                   max_bytes, size);
  std::string content(size, '\0');
  content.resize(read_fully(*descriptor, path, content.data(), content.size()));
  return content;
}

void make_directories(const Path& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) fail_system(directory, "must be creatable as a directory", error);
}

OutputFile::OutputFile(const Path& path, bool append) : path_(path) {
  const int flags = O_WRONLY | O_CREAT | O_CLOEXEC | (append ? O_APPEND : O_TRUNC);
  descriptor_ = retry_interrupted([&] { return ::open(path.c_str(), flags, 0666); });
  if (descriptor_ < 0) fail_system(path_, "must be writable");
}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void OutputFile::write(const void* data, size_t size) {
  const char* position = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t count = retry_interrupted([&] { return ::write(descriptor_, position, size); });
    if (count < 0) fail_system(path_, "must be writable");
    position += count;
    size -= static_cast<size_t>(count);
  }
}

void OutputFile::commit() {
  // A pipe or a terminal has nothing to flush.
  if (retry_interrupted([&] { return ::fsync(descriptor_); }) != 0 && errno != EINVAL && errno != EROFS) {
    fail_system(path_, "must reach the disk");
  }
  // After EINTR the descriptor is closed all the same on Linux; the data are safe since fsync.
  if (::close(std::exchange(descriptor_, -1)) != 0 && errno != EINTR) {
    fail_system(path_, "must be closable");
  }
}

bool is_stream(const Path& path) {
  std::error_code error;
  const auto type = std::filesystem::status(path, error).type();
  return type == std::filesystem::file_type::character || type == std::filesystem::file_type::block ||
         type == std::filesystem::file_type::fifo || type == std::filesystem::file_type::socket;
}

void write_file_atomically(const Path& path, std::string_view text) { write_file_atomically(path, std::span(&text, 1)); }

void write_file_atomically(const Path& given, std::span<const std::string_view> pieces) {
  const Path path = followed(given);
  if (is_stream(path)) return write_pieces(path, pieces);
  const Path temporary = unused_name(path, kTemporaryMark);
  try {
    write_pieces(temporary, pieces);
    rename_entry(temporary, path);
  } catch (...) {
    remove_quietly(temporary);
    throw;
  }
  sync_directory(parent_of(path));
}

void sync_directory(const Path& directory) { sync(directory, O_RDONLY | O_DIRECTORY); }

AtomicDirectory::AtomicDirectory(Path target) : target_(std::move(target).lexically_normal()) {
  if (!target_.has_filename()) target_ = target_.parent_path();
  target_ = followed(target_);
  require<IoError>(!is_stream(target_),
                   "[{}] a directory must not take the place of a device or pipe; found one; give another place",
                   target_.string());
  make_directories(parent_of(target_));
  temporary_ = unused_name(target_, kTemporaryMark);
  make_directories(temporary_);
}

AtomicDirectory::~AtomicDirectory() {
  if (!temporary_.empty()) remove_quietly(temporary_);
}

void AtomicDirectory::commit() {
  sync_tree(temporary_);
  std::error_code error;
  const auto existing = std::filesystem::symlink_status(target_, error).type();
  if (existing == std::filesystem::file_type::not_found) {
    rename_entry(temporary_, target_);
    temporary_.clear();
  } else {
    // From here on the name holds the old directory, which goes once the new one is safe.
    temporary_ = exchange_directories(temporary_, target_);
  }
  sync_directory(parent_of(target_));
  if (!temporary_.empty()) remove_quietly(std::exchange(temporary_, Path()));
}

void require_writable(const Path& directory) {
  make_directories(directory);
  const Path probe = unused_name(directory / "writable", kTemporaryMark);
  OutputFile file(probe);
  remove_quietly(probe);
}

void remove_stale_temporaries(const Path& directory) {
  std::error_code error;
  std::vector<Path> stale;
  std::filesystem::directory_iterator entries(directory, error), end;
  if (error == std::errc::no_such_file_or_directory) return;
  while (!error && entries != end) {
    const auto owner = owner_of_temporary(entries->path().filename().string());
    if (owner && !is_running(*owner)) stale.push_back(entries->path());
    entries.increment(error);
  }
  if (error) fail_system(directory, "must be listable", error);
  for (const Path& path : stale) {
    std::filesystem::remove_all(path, error);
    if (error) fail_system(path, "is a leftover and must be removable", error);
  }
}

std::string digest(std::span<const std::byte> bytes) {
  StreamedDigest result;
  result.add(bytes.data(), bytes.size());
  return result.hexadecimal();
}

std::string digest_of_pieces(std::span<const std::string_view> pieces) {
  StreamedDigest result;
  for (const std::string_view piece : pieces) result.add(piece.data(), piece.size());
  return result.hexadecimal();
}

std::string file_digest(const Path& path) {
  constexpr size_t kPieceBytes = 1u << 20;
  const auto [descriptor, size] = open_regular(path);
  StreamedDigest result;
  std::vector<char> piece(std::min<uint64_t>(kPieceBytes, size + 1));
  while (const size_t count = read_fully(*descriptor, path, piece.data(), piece.size())) {
    result.add(piece.data(), count);
  }
  return result.hexadecimal();
}

}  // namespace lora
