#include "lora/generate/stop_strings.h"

#include "lora/core/error.h"
#include "lora/generate/complete_all.h"
#include "support.h"
#include "tiny_model.h"

using lora::generate::complete;
using lora::generate::GenerateOptions;
using lora::generate::stop_at_strings;
using lora::testing::message_of;
using lora::testing::TinyModelImpl;

namespace {

/// Id i is the letter 'a' + i.
class Letters : public lora::data::Tokenizer {
 public:
  std::vector<int64_t> encode(std::string_view text) const override {
    std::vector<int64_t> ids;
    for (const char letter : text) ids.push_back(letter - 'a');
    return ids;
  }
  std::string decode(std::span<const int64_t> ids) const override {
    std::string text;
    for (const int64_t id : ids) text += piece(id);
    return text;
  }
  std::string piece(int64_t id) const override {
    if (id < 0 || id >= vocab_size()) throw lora::DataError("[id] unknown");
    return std::string(1, static_cast<char>('a' + id));
  }
  int64_t vocab_size() const override { return 11; }
  int64_t bos_id() const override { return -1; }
  int64_t eos_id() const override { return -1; }
  int64_t pad_id() const override { return -1; }
};

}  // namespace

TEST_CASE("an answer ends where a string is whole", "[generate]") {
  const auto tokenizer = std::make_shared<Letters>();
  const auto is_end = stop_at_strings(tokenizer, {"cab", "dd"});
  CHECK_FALSE(is_end(tokenizer->encode("ca")));
  CHECK(is_end(tokenizer->encode("cab")));
  CHECK(is_end(tokenizer->encode("abcabb")));
  CHECK(is_end(tokenizer->encode("bdd")));
  CHECK_FALSE(is_end(tokenizer->encode("dcd")));
  const std::vector<int64_t> unknown{3, 99, 3};
  CHECK(is_end(unknown));  // tokens of the model that the tokenizer does not have say nothing
}

TEST_CASE("generation ends at a string", "[generate]") {
  TinyModelImpl model;
  GenerateOptions options;
  options.max_new_tokens = 9;
  options.sampling.temperature = 5;
  const auto free_run = complete(model, {3, 1, 4}, options, at::kCPU).token_ids;
  const auto tokenizer = std::make_shared<Letters>();
  const std::string text = tokenizer->decode(free_run), last = text.substr(4, 2);
  REQUIRE(text.find(last) == 4);
  options.stop_when = stop_at_strings(tokenizer, {last});
  const auto result = complete(model, {3, 1, 4}, options, at::kCPU);
  CHECK(tokenizer->decode(result.token_ids) == text.substr(0, 6));
  CHECK(result.finish_reason == "stop");
}

TEST_CASE("strings that say nothing are refused", "[generate]") {
  const auto tokenizer = std::make_shared<Letters>();
  CHECK(message_of<lora::ConfigError>([&] { stop_at_strings(tokenizer, {}); }).find("none") != std::string::npos);
  CHECK(message_of<lora::ConfigError>([&] { stop_at_strings(tokenizer, {"a", ""}); }).find("empty") != std::string::npos);
}
