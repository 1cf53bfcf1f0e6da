#pragma once

#include <cstddef>
#include <span>

#include "lora/core/path.h"

namespace lora {

/// A regular file's bytes, read where they lie: pages come from the disk when they are looked at, and belong to the
/// system's cache. The bytes stay those of the opened file when its name is given to another one; a file that is
/// changed in place is the business of who changes it.
class MappedFile {
 public:
  /// Throws IoError when the file is missing, not a regular file or cannot be mapped.
  explicit MappedFile(const Path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace lora
