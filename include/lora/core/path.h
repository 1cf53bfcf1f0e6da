#pragma once

#include <filesystem>

namespace lora {

/// A file or directory name.
using Path = std::filesystem::path;

}  // namespace lora
