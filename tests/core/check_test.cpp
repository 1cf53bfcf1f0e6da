#include "core/check.h"

#include <string>
#include <vector>

#include "lora/core/error.h"
#include "support.h"

using lora::FormatError;
using lora::testing::message_of;

TEST_CASE("requirements throw their type and text only when they fail", "[core]") {
  CHECK_NOTHROW(lora::require<FormatError>(true, "[a] {}", 1));
  CHECK(message_of<FormatError>([] { lora::require<FormatError>(false, "[a] {} {}", 1, "b"); }) == "[a] 1 b");
  CHECK(message_of<lora::IoError>([] { lora::fail<lora::IoError>("[a] {:.2f}", 0.5); }) == "[a] 0.50");
  const std::vector<int64_t> shape = {2, 3};
  CHECK(message_of<FormatError>([&] { lora::fail<FormatError>("[a] {}", shape); }) == "[a] [2, 3]");
}

TEST_CASE("text that is not UTF-8 is safe in messages", "[core]") {
  for (const char* bytes : {"\"\xFF", "\"\xC0", "\xC0\xAF", "\xED\xA0\x80", "\xE2\x82", "a\xF0", "\xFF"}) {
    const std::string text = bytes;
    const std::vector<std::string> list = {text, "b"};
    const std::string message =
        message_of<FormatError>([&] { lora::fail<FormatError>("[{}] {:?} {}", text, std::string_view(text), list); });
    CHECK(lora::is_utf8(message));
    CHECK(message.find("\xEF\xBF\xBD") != std::string::npos);
    CHECK(message.ends_with(", \"b\"]"));
  }
}
