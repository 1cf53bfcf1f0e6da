// What tests of several modules share: scratch folders, reference files, checks of error texts.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>

#include "catch.h"
#include "lora/core/path.h"

namespace lora::testing {

/// A new folder under the system's temporary one, removed at the end of the scope.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "lora_test_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no scratch folder");
    path_ = name;
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  const Path& path() const { return path_; }
  Path operator/(std::string_view name) const { return path_ / name; }

  /// Writes a file below the folder and returns its path.
  Path write(std::string_view name, std::string_view text) const {
    const Path file = path_ / name;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary) << text;
    return file;
  }

 private:
  Path path_;
};

/// Folder of the source tree's tests/reference. CTest sets LORA_SOURCE_DIR.
inline Path reference_folder() {
  const char* source = std::getenv("LORA_SOURCE_DIR");
  return Path(source == nullptr ? "." : source) / "tests" / "reference";
}

/// A file or folder under LORA_TEST_DATA (data that the tree does not hold); nothing, with a line
/// printed, where that is not set or not there.
inline std::optional<Path> outside_data(const Path& relative) {
  const char* root = std::getenv("LORA_TEST_DATA");
  if (root != nullptr && std::filesystem::exists(root / relative)) return root / relative;
  WARN("skipped: needs LORA_TEST_DATA with " << relative.string());
  return std::nullopt;
}

/// The message of the E that `action` throws; fails the test when it throws none.
template <class E, class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const E& error) {
    const std::string text = error.what();
    CHECK(text.starts_with("["));
    CHECK(text.find('\n') == std::string::npos);
    return text;
  }
  FAIL("no exception");
  return {};
}

}  // namespace lora::testing
