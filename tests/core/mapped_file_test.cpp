#include "lora/core/mapped_file.h"

#include "lora/core/error.h"
#include "lora/core/file.h"
#include "support.h"

using lora::IoError;
using lora::MappedFile;
using lora::testing::message_of;

namespace {

std::string text_of(const MappedFile& file) { return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}; }

}  // namespace

TEST_CASE("a mapped file shows its bytes, also after its name went to another file", "[core]") {
  const lora::testing::ScratchFolder scratch;
  const lora::Path path = scratch.write("f", std::string(100'000, 'a') + "end");
  const MappedFile file(path);
  CHECK(file.bytes().size() == 100'003);
  lora::write_file_atomically(path, "other");
  CHECK(text_of(file).ends_with("aend"));
  CHECK(text_of(MappedFile(path)) == "other");
  std::filesystem::remove(path);
  CHECK(text_of(file).ends_with("aend"));
}

TEST_CASE("what cannot be mapped is refused with its name", "[core]") {
  const lora::testing::ScratchFolder scratch;
  CHECK(MappedFile(scratch.write("empty", "")).bytes().empty());
  CHECK(message_of<IoError>([&] { MappedFile(scratch / "none"); }).find("none") != std::string::npos);
  message_of<IoError>([&] { MappedFile(scratch.path()); });
  message_of<IoError>([&] { MappedFile("/dev/zero"); });
}
