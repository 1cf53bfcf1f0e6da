#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/path.h"

namespace lora::formats {

/// The bit of a token that is no target; the other 31 are its id.
constexpr int32_t kMaskedToken = INT32_MIN;
constexpr int32_t kTokenId = INT32_MAX;

/// Rows of tokens, one after the other. Row i is the tokens from ends[i - 1] (0 for the first) to
/// before ends[i].
struct TokenRows {
  std::span<const int32_t> tokens;
  std::span<const int64_t> ends, numbers;  ///< one per row; numbers: its place in the source, from 1
};

/// A data set as tokens, with what was found while reading it.
struct TokenCache {
  TokenRows rows;
  int64_t num_rows = 0, num_bad_rows = 0, num_truncated = 0;
  std::vector<std::string> bad_row_reasons;
  std::vector<std::pair<std::string, std::string>> text_pairs;
};

/// A token cache file, little-endian: a head of 128 bytes (magic, digest of all that follows it, version, key, counts),
/// then numbers and ends (int64), tokens (int32) and texts (length as uint64, bytes). `key` is a digest of all that the
/// tokens depend on. Replaces the file in one step. Throws IoError.
void write_token_cache(const Path& file, const TokenCache& cache, std::string_view key);

/// Reads what write_token_cache wrote. The rows are views of `bytes`, which must be 8-byte aligned. Everything is
/// checked first: digest, version, `key`, sizes, that rows have tokens, that ids are below `vocab_size` (0: any).
/// Throws FormatError; `where` opens the message.
TokenCache parse_token_cache(std::span<const std::byte> bytes, std::string_view key, int64_t vocab_size, std::string_view where);

}  // namespace lora::formats
