#include "core/copy_directory.h"

#include "lora/core/error.h"
#include "lora/core/file.h"
#include "support.h"

using namespace lora;
using testing::message_of;
using testing::ScratchFolder;

TEST_CASE("a directory is copied with its folders", "[core]") {
  const ScratchFolder folder;
  folder.write("from/a.txt", "one");
  folder.write("from/inner/b.txt", "two");
  std::filesystem::create_directories(folder / "to");
  copy_directory(folder / "from", folder / "to");
  CHECK(read_file(folder / "to/a.txt") == "one");
  CHECK(read_file(folder / "to/inner/b.txt") == "two");
  folder.write("from/a.txt", "other");
  CHECK(read_file(folder / "to/a.txt") == "one");
}

TEST_CASE("a directory that is not there is named", "[core]") {
  const ScratchFolder folder;
  const auto message = message_of<IoError>([&] { copy_directory(folder / "nowhere", folder / "to"); });
  CHECK(message.find("nowhere") != std::string::npos);
}
