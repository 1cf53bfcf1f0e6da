#include "lora/formats/token_cache.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "core/check.h"
#include "lora/core/file.h"

static_assert(std::endian::native == std::endian::little, "token caches are little-endian");

namespace lora::formats {
namespace {

constexpr std::string_view kMagic = "loratoks";
constexpr uint64_t kVersion = 1;
constexpr size_t kDigestEnd = 40;  // magic and digest; the digest is of what follows

struct Head {
  std::array<char, 8> magic;
  std::array<char, 32> digest;
  uint64_t version;
  std::array<char, 32> key;
  uint64_t rows, tokens;
  uint64_t num_rows, num_bad_rows, num_truncated;
  uint64_t num_reasons;  ///< texts are so many reasons, then pairs
};
static_assert(sizeof(Head) == 128);

template <class T>
std::string_view bytes_of(std::span<const T> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

template <size_t N>
void copy_text(std::string_view text, std::array<char, N>& target) {
  require<FormatError>(text.size() == N, "[token cache] a key must have {} characters; found {}", N, text.size());
  std::copy(text.begin(), text.end(), target.begin());
}

void append_text(std::string& texts, std::string_view text) {
  const uint64_t size = text.size();
  texts.append(reinterpret_cast<const char*>(&size), sizeof(size)).append(text);
}

std::string texts_of(const TokenCache& cache) {
  std::string texts;
  for (const auto& reason : cache.bad_row_reasons) append_text(texts, reason);
  for (const auto& [prompt, response] : cache.text_pairs) {
    append_text(texts, prompt);
    append_text(texts, response);
  }
  return texts;
}

/// Takes a cache file's parts off its bytes, front to back.
class Parser {
 public:
  Parser(std::span<const std::byte> bytes, std::string_view where) : rest_(bytes), where_(where) {}

  TokenCache parse(std::string_view key, int64_t vocab_size) {
    const Head head = take_head(key);
    TokenCache cache;
    cache.rows.numbers = take<int64_t>(head.rows);
    cache.rows.ends = take<int64_t>(head.rows);
    cache.rows.tokens = take<int32_t>(head.tokens);
    check_rows(cache.rows, vocab_size);
    constexpr uint64_t kMost = INT64_MAX;
    must(head.num_rows <= kMost && head.num_bad_rows <= kMost && head.num_truncated <= kMost, "sensible counts");
    cache.num_rows = static_cast<int64_t>(head.num_rows);
    cache.num_bad_rows = static_cast<int64_t>(head.num_bad_rows);
    cache.num_truncated = static_cast<int64_t>(head.num_truncated);
    for (uint64_t i = 0; i < head.num_reasons; ++i) cache.bad_row_reasons.push_back(take_text());
    while (!rest_.empty()) {
      std::string prompt = take_text();
      cache.text_pairs.emplace_back(std::move(prompt), take_text());
    }
    return cache;
  }

 private:
  void must(bool condition, std::string_view what) const {
    require<FormatError>(condition, "[{}] a token cache must have {}; this file has not", where_, what);
  }

  Head take_head(std::string_view key) {
    must(rest_.size() >= sizeof(Head), "a head of 128 bytes");
    Head head;
    std::memcpy(&head, rest_.data(), sizeof(head));
    must(std::ranges::equal(head.magic, kMagic), "its magic bytes");
    must(std::ranges::equal(head.digest, digest(rest_.subspan(kDigestEnd))), "the digest of its content");
    must(head.version == kVersion, "this program's version");
    must(std::ranges::equal(head.key, key), "the key of these data and settings");
    rest_ = rest_.subspan(sizeof(Head));
    return head;
  }

  template <class T>
  std::span<const T> take(uint64_t count) {
    must(count <= rest_.size() / sizeof(T), "the sizes that it announces");
    const auto* data = reinterpret_cast<const T*>(rest_.data());
    rest_ = rest_.subspan(count * sizeof(T));
    return {data, count};
  }

  std::string take_text() {
    uint64_t size = 0;
    must(rest_.size() >= sizeof(size), "whole texts");
    std::memcpy(&size, rest_.data(), sizeof(size));
    rest_ = rest_.subspan(sizeof(size));
    const auto text = take<char>(size);
    return {text.begin(), text.end()};
  }

  void check_rows(const TokenRows& rows, int64_t vocab_size) const {
    int64_t end = 0;
    bool increasing = true, numbered = true;
    for (size_t i = 0; i < rows.ends.size(); ++i) {
      increasing = increasing && rows.ends[i] > end;
      numbered = numbered && rows.numbers[i] >= 1;
      end = rows.ends[i];
    }
    must(increasing && std::cmp_equal(end, rows.tokens.size()), "rows that make up its tokens");
    must(numbered, "rows that are numbered from 1");
    int32_t largest = 0;
    for (const int32_t token : rows.tokens) largest = std::max(largest, token & kTokenId);
    must(vocab_size <= 0 || largest < vocab_size, "ids of the model's vocabulary");
  }

  std::span<const std::byte> rest_;
  std::string_view where_;
};

}  // namespace

void write_token_cache(const Path& file, const TokenCache& cache, std::string_view key) {
  Head head = {};
  copy_text(kMagic, head.magic);
  copy_text(key, head.key);
  head.version = kVersion;
  head.rows = cache.rows.ends.size();
  head.tokens = cache.rows.tokens.size();
  head.num_rows = static_cast<uint64_t>(cache.num_rows);
  head.num_bad_rows = static_cast<uint64_t>(cache.num_bad_rows);
  head.num_truncated = static_cast<uint64_t>(cache.num_truncated);
  head.num_reasons = cache.bad_row_reasons.size();

  const std::string texts = texts_of(cache);
  const std::string_view head_bytes(reinterpret_cast<const char*>(&head), sizeof(head));
  std::array<std::string_view, 5> pieces = {head_bytes.substr(kDigestEnd), bytes_of(cache.rows.numbers),
                                            bytes_of(cache.rows.ends), bytes_of(cache.rows.tokens), texts};
  copy_text(digest_of_pieces(pieces), head.digest);
  pieces[0] = head_bytes;
  write_file_atomically(file, pieces);
}

TokenCache parse_token_cache(std::span<const std::byte> bytes, std::string_view key, int64_t vocab_size, std::string_view where) {
  return Parser(bytes, where).parse(key, vocab_size);
}

}  // namespace lora::formats
