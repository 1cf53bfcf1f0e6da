#include "core/copy_directory.h"

#include <filesystem>
#include <system_error>

#include "core/check.h"
#include "lora/core/error.h"

namespace lora {

void copy_directory(const Path& from, const Path& to) {
  std::error_code error;
  std::filesystem::copy(from, to, std::filesystem::copy_options::recursive, error);
  require<IoError>(!error, "[{}] must be copyable to {}; {}; check the disk and its permissions", from.string(), to.string(),
                   error.message());
}

}  // namespace lora
