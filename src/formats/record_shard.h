// The bytes of a record set's files, see parse_record_shard.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string_view>

#include "lora/formats/records.h"

static_assert(std::endian::native == std::endian::little, "record files are little-endian");

namespace lora::formats {

constexpr std::string_view kDataMagic = "lorarecd", kIndexMagic = "loraridx";
constexpr uint32_t kRecordVersion = 1;

struct RecordFileHead {
  std::array<char, 8> magic;
  std::array<char, 32> set;
  uint32_t version, shard;
  std::array<char, 16> unused;
};
static_assert(sizeof(RecordFileHead) == 64);

struct RecordBlock {
  std::array<char, 32> digest;  ///< of all that follows, the rows included
  std::array<char, 32> tokens_digest;
  uint32_t rows, tokens;
  SourceCounts counts;
};
static_assert(sizeof(RecordBlock) == 96);

struct RecordRow {
  int64_t number;
  uint32_t length, target_start;
};
static_assert(sizeof(RecordRow) == 16);

constexpr size_t kDigestBytes = 32;

/// Throws ConfigError for a set that is no digest.
RecordFileHead record_file_head(std::string_view magic, const RecordShardName& name);

}  // namespace lora::formats
