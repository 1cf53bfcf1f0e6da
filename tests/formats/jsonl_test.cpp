#include "lora/formats/jsonl.h"

#include <fstream>
#include <string>
#include <vector>

#include "lora/core/error.h"
#include "support.h"

using lora::formats::LineReader;
using lora::testing::message_of;

namespace {

std::vector<std::string> lines_of(const std::string& content) {
  const lora::testing::ScratchFolder scratch;
  const lora::Path file = scratch.path() / "lines.jsonl";
  std::ofstream(file, std::ios::binary) << content;
  LineReader reader(file);
  std::vector<std::string> lines;
  while (auto line = reader.next()) {
    lines.push_back(*line);
    CHECK(reader.line_number() == static_cast<int64_t>(lines.size()));
  }
  CHECK_FALSE(reader.next());
  return lines;
}

using Lines = std::vector<std::string>;

}  // namespace

TEST_CASE("lines end at LF or CRLF, the last one also at the end", "[formats]") {
  CHECK(lines_of("a\nb\r\n\nc") == Lines{"a", "b", "", "c"});
  CHECK(lines_of("a\n") == Lines{"a"});
  CHECK(lines_of("").empty());
  CHECK(lines_of("\n\n") == Lines{"", ""});
  CHECK(lines_of("a\rb\n") == Lines{"a\rb"});
  CHECK(lines_of("a\r") == Lines{"a\r"});
  CHECK(lines_of(std::string("a\0b\n", 4)) == Lines{std::string("a\0b", 3)});
}

TEST_CASE("a byte-order mark at the start is dropped", "[formats]") {
  CHECK(lines_of("\xEF\xBB\xBF{}\n\xEF\xBB\xBF") == Lines{"{}", "\xEF\xBB\xBF"});
  CHECK(lines_of("\xEF\xBB\xBF").empty());
  CHECK(lines_of("\xEF\xBB\xBF\n") == Lines{""});
}

TEST_CASE("lines beyond the limit and unreadable files are refused", "[formats]") {
  const lora::testing::ScratchFolder scratch;
  const lora::Path file = scratch.path() / "long.jsonl";
  std::ofstream(file) << "1234\n12345\n";
  LineReader reader(file, 4);
  CHECK(reader.next() == "1234");
  const auto text = message_of<lora::FormatError>([&] { reader.next(); });
  CHECK(text.find("long.jsonl:2]") != std::string::npos);

  message_of<lora::IoError>([&] { LineReader missing(scratch.path() / "none"); });
  message_of<lora::IoError>([&] { LineReader(scratch.path()).next(); });
  LineReader endless("/dev/zero", 1000);
  message_of<lora::FormatError>([&] { endless.next(); });
}
