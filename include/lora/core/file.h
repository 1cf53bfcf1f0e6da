#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "lora/core/path.h"

namespace lora {

/// Whole file as bytes. Throws IoError when it is missing, not a regular file, unreadable or over
/// `max_bytes`.
std::string read_file(const Path& path, uint64_t max_bytes = 1ull << 30);

/// Makes a directory and those above it, where they are not there. Throws IoError.
void make_directories(const Path& directory);

/// A file that is written, fsynced and closed, or reported: no error of the disk is lost.
/// Every member throws IoError with the path and the system's reason.
class OutputFile {
 public:
  /// Creates or truncates (or, with `append`, continues) the file.
  explicit OutputFile(const Path& path, bool append = false);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  /// Hands all bytes to the system before it returns; nothing is buffered here.
  void write(const void* data, size_t size);
  void write(std::string_view text) { write(text.data(), text.size()); }
  /// Flushes to the device and closes. Without it the destructor closes quietly.
  void commit();

 private:
  Path path_;
  int descriptor_ = -1;
};

/// Whether `path` is a device, a pipe or a socket, which is written to and not replaced.
bool is_stream(const Path& path);

/// Replaces `path` by `text` in one step: a temporary file beside it, fsync, rename. Throws
/// IoError, and then leaves the old file as it was. Of a link what it leads to is replaced; a stream is written to.
void write_file_atomically(const Path& path, std::string_view text);
/// The same from pieces, one after the other, so that a large file need not be put together in memory first.
void write_file_atomically(const Path& path, std::span<const std::string_view> pieces);

/// Flushes a directory's entries, so that a rename in it survives power loss. Throws IoError.
void sync_directory(const Path& directory);

/// A directory that appears whole or not at all: filled under `<target>.tmp-<pid>-<n>`, then
/// renamed to `target`. An existing target is replaced only after the new one is complete.
/// Destroyed without commit: removed again.
class AtomicDirectory {
 public:
  /// Creates the temporary directory, and the parent where it is missing. Throws IoError.
  explicit AtomicDirectory(Path target);
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  /// Where to put the files.
  const Path& path() const { return temporary_; }
  /// Syncs every file, renames, syncs the parent. Throws IoError. Not to be called twice.
  void commit();

 private:
  Path target_, temporary_;
};

/// Throws IoError unless files can be created in `directory`, which is created when it does not
/// exist.
void require_writable(const Path& directory);

/// Removes leftovers of AtomicDirectory and write_file_atomically of processes that no longer run:
/// entries of `directory` named `*.tmp-<pid>-<n>`. A directory that does not exist holds none.
/// Throws IoError.
void remove_stale_temporaries(const Path& directory);

/// XXH3-128 of a byte range, as 32 hexadecimal digits.
std::string digest(std::span<const std::byte> bytes);
/// The same of pieces, one after the other.
std::string digest_of_pieces(std::span<const std::string_view> pieces);
/// The same over a whole file, read in pieces. Throws IoError.
std::string file_digest(const Path& path);

}  // namespace lora
