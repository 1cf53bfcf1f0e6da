#include "lora/core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "core/check.h"

namespace lora {
namespace {

[[noreturn]] void fail_mapping(const Path& path, int error) {
  fail<IoError>("[{}] must be readable; the system says: {}; check the path and its permissions", path.string(),
                std::generic_category().message(error));
}

/// Closes a descriptor at the end of the scope; a mapping outlives it.
struct Closing {
  int descriptor;
  ~Closing() { ::close(descriptor); }
};

}  // namespace

MappedFile::MappedFile(const Path& path) {
  // O_NONBLOCK: opening a pipe would wait for its writer.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) fail_mapping(path, errno);
  const Closing closing{descriptor};
  struct stat info = {};
  if (::fstat(descriptor, &info) != 0) fail_mapping(path, errno);
  require<IoError>(S_ISREG(info.st_mode), "[{}] must be a regular file; found a directory or device; name a file", path.string());
  if (info.st_size == 0) return;  // nothing that could be mapped
  const auto size = static_cast<size_t>(info.st_size);
  void* const data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0);
  if (data == MAP_FAILED) fail_mapping(path, errno);
  data_ = static_cast<const std::byte*>(data);
  size_ = size;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace lora
