#include "lora/formats/token_cache.h"

#include <algorithm>
#include <cstring>

#include "lora/core/error.h"
#include "lora/core/file.h"
#include "lora/core/random.h"
#include "support.h"

using lora::FormatError;
using lora::formats::kMaskedToken;
using lora::formats::parse_token_cache;
using lora::formats::TokenCache;
using lora::testing::message_of;

namespace {

const std::string kKey = "0123456789abcdef0123456789abcdef";
constexpr size_t kHeadBytes = 128, kDigestBegin = 8, kDigestEnd = 40;

/// A file's bytes where int64 values may lie.
class AlignedBytes {
 public:
  explicit AlignedBytes(std::string_view text) : size_(text.size()), words_(text.size() / 8 + 1) {
    std::memcpy(words_.data(), text.data(), size_);
  }
  std::span<const std::byte> bytes() const { return std::as_bytes(std::span(words_)).first(size_); }

 private:
  size_t size_;
  std::vector<uint64_t> words_;
};

/// Three rows: [1 | 5 6], [7 8], [9], `|` being the end of what is masked.
struct Sample {
  std::vector<int32_t> tokens = {1 | kMaskedToken, 5, 6, 7, 8, 9};
  std::vector<int64_t> ends = {3, 5, 6}, numbers = {1, 4, 5};

  TokenCache cache() const {
    return {.rows = {tokens, ends, numbers},
            .num_rows = 5,
            .num_bad_rows = 2,
            .num_truncated = 1,
            .bad_row_reasons = {":2] not JSON", ":3] \xff"},
            .text_pairs = {{"prompt", ""}, {"问", "答"}}};
  }

  std::string file_text() const {
    const lora::testing::ScratchFolder scratch;
    write_token_cache(scratch / "f", cache(), kKey);
    return lora::read_file(scratch / "f");
  }
};

/// Throws FormatError, or reads every value: a bound that was not checked shows under the sanitizers.
int64_t sum_of_all(const std::string& text) {
  const AlignedBytes file(text);
  const TokenCache cache = parse_token_cache(file.bytes(), kKey, 100, "f");
  int64_t sum = 0, begin = 0;
  REQUIRE(std::min({cache.num_rows, cache.num_bad_rows, cache.num_truncated}) >= 0);
  for (size_t row = 0; row < cache.rows.ends.size(); ++row) {
    REQUIRE(cache.rows.ends[row] > begin);
    for (; begin < cache.rows.ends[row]; ++begin) {
      const int32_t token = cache.rows.tokens[static_cast<size_t>(begin)];
      REQUIRE((token & lora::formats::kTokenId) < 100);
      sum += token;
    }
    REQUIRE(cache.rows.numbers[row] >= 1);
  }
  for (const auto& reason : cache.bad_row_reasons) sum += static_cast<int64_t>(reason.size());
  for (const auto& [prompt, response] : cache.text_pairs) sum += static_cast<int64_t>(prompt.size() + response.size());
  return sum;
}

/// With the digest that fits the content, as somebody who wants to do harm would write it.
std::string signed_again(std::string text) {
  if (text.size() < kDigestEnd) return text;
  const auto content = std::as_bytes(std::span(text)).subspan(kDigestEnd);
  text.replace(kDigestBegin, kDigestEnd - kDigestBegin, lora::digest(content));
  return text;
}

}  // namespace

TEST_CASE("a token cache reads back as it was written", "[formats]") {
  const Sample sample;
  const AlignedBytes file(sample.file_text());
  const TokenCache read = parse_token_cache(file.bytes(), kKey, 10, "f");
  CHECK(std::ranges::equal(read.rows.tokens, sample.tokens));
  CHECK(std::ranges::equal(read.rows.ends, sample.ends));
  CHECK(std::ranges::equal(read.rows.numbers, sample.numbers));
  CHECK(read.num_rows == 5);
  CHECK(read.num_bad_rows == 2);
  CHECK(read.num_truncated == 1);
  CHECK(read.bad_row_reasons == sample.cache().bad_row_reasons);
  CHECK(read.text_pairs == sample.cache().text_pairs);
  // Read where it lies.
  CHECK(reinterpret_cast<const std::byte*>(read.rows.numbers.data()) == file.bytes().data() + kHeadBytes);
}

TEST_CASE("a cache of other data, ids or versions is refused", "[formats]") {
  const Sample sample;
  const std::string text = sample.file_text();
  const AlignedBytes file(text);
  const auto message = [&](std::string_view key, int64_t vocab_size) {
    return message_of<FormatError>([&] { parse_token_cache(file.bytes(), key, vocab_size, "the file"); });
  };
  CHECK(message("1123456789abcdef0123456789abcdef", 10).find("[the file]") == 0);
  CHECK(message(kKey, 9).find("vocabulary") != std::string::npos);
  std::string other_version = text;
  other_version[kDigestEnd] = 2;
  CHECK(message_of<FormatError>([&] { sum_of_all(signed_again(other_version)); }).find("version") != std::string::npos);
  CHECK(message_of<FormatError>([&] { sum_of_all(other_version); }).find("digest") != std::string::npos);
}

TEST_CASE("a truncated or changed token cache is refused", "[formats]") {
  const std::string text = Sample().file_text();
  CHECK_NOTHROW(sum_of_all(text));
  CHECK_THROWS_AS(sum_of_all(text + '\0'), FormatError);
  for (size_t size = 0; size < text.size(); ++size) {
    CHECK_THROWS_AS(sum_of_all(text.substr(0, size)), FormatError);
    std::string changed = text;
    changed[size] = static_cast<char>(changed[size] ^ 1);
    CHECK_THROWS_AS(sum_of_all(changed), FormatError);
  }
}

TEST_CASE("rows that are empty, overlap, leave tokens over or have no number are refused", "[formats]") {
  using Numbers = std::vector<int64_t>;
  Sample sample;
  const auto check_refused = [&] { CHECK_THROWS_AS(sum_of_all(sample.file_text()), FormatError); };
  for (const auto& ends : {Numbers{0, 5, 6}, {3, 3, 6}, {5, 3, 6}, {-1, 5, 6}, {3, 5, 5}, {3, 5, 7}, {3, 5, INT64_MAX}}) {
    sample.ends = ends;
    check_refused();
  }
  sample = Sample();
  for (const int64_t number : {int64_t{0}, int64_t{-1}, INT64_MIN}) {
    sample.numbers[1] = number;
    check_refused();
  }
}

TEST_CASE("a token cache with a fitting digest is checked all the same", "[formats]") {
  const std::string text = Sample().file_text();
  lora::SplitMix64 random(11);
  int refused = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string changed = text;
    for (uint64_t flips = 1 + random.below(4); flips > 0; --flips) {
      const size_t at = kDigestEnd + random.below(text.size() - kDigestEnd);
      const bool extreme = random.below(2) == 0;
      changed[at] = static_cast<char>(extreme ? 0xff : random.below(256));
    }
    if (random.below(3) == 0) changed.resize(random.below(changed.size() + 1));
    try {
      sum_of_all(signed_again(changed));
    } catch (const FormatError&) {
      ++refused;
    }
  }
  CHECK(refused > 10'000);
}
