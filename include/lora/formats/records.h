#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/mapped_file.h"
#include "lora/core/path.h"
#include "lora/formats/token_cache.h"

namespace lora::formats {

/// Name of the file that a whole record set has.
constexpr const char* kRecordHeaderFile = "records.json";

/// What is known of the rows that were read up to some row.
struct SourceCounts {
  uint64_t rows = 0, bad_rows = 0, truncated = 0;
  bool operator==(const SourceCounts&) const = default;
};

/// What the header says of a shard.
struct RecordShardInfo {
  int64_t rows = 0, tokens = 0;
  std::string index_digest;
  bool operator==(const RecordShardInfo&) const = default;
};

/// records.json: schema, statistics and shards of a set.
struct RecordHeader {
  std::string set = {};                   ///< digest of all that the rows depend on: 32 hexadecimal digits
  std::string format = {};                ///< data.format of the source
  std::string tokenizer = {};             ///< fingerprint; empty for token data
  int64_t vocab_size = 0;                 ///< every id is below it; 0: not known
  std::optional<bool> train_on_sop = {};  ///< data.train_on_sop, where the format is one that it means something to
  int64_t rows = 0, tokens = 0, targets = 0, shortest = 0, longest = 0;
  SourceCounts source = {};
  std::vector<RecordShardInfo> shards = {};
  bool operator==(const RecordHeader&) const = default;
};

std::string record_header_text(const RecordHeader& header);
/// Reads what record_header_text made. Throws FormatError.
RecordHeader parse_record_header(std::string_view text, std::string_view where);

/// A shard as its two files have it. The tokens are a view of the data file's bytes.
struct RecordShard {
  std::span<const int32_t> tokens;     ///< as in TokenRows
  std::vector<int64_t> ends, numbers;  ///< as in TokenRows
  std::vector<int32_t> target_starts;  ///< place of a row's first target; its length when it has none
  std::vector<SourceCounts> counts_of_blocks;
  std::vector<size_t> index_ends, data_ends;  ///< of every block in the files

  TokenRows rows() const { return {tokens, ends, numbers}; }
};

/// Which shard a file must be.
struct RecordShardName {
  std::string set;
  uint32_t shard = 0;
};

/// Reads a shard, little-endian. Both files begin with 64 bytes: magic, set, version, number of the shard. The data file goes on
/// with tokens (int32, see TokenRows), the index file with blocks: digest of the block's further bytes, digest of its tokens,
/// numbers of rows and tokens, SourceCounts after its last row, and 16 bytes per row (number int64, length and target start
/// uint32). Everything is checked: digests, sizes, that rows have tokens, that ids are below `vocab_size` (0: any). `data` must
/// be 4-byte aligned. Throws FormatError with file name and offset.
RecordShard parse_record_shard(std::span<const std::byte> data, std::span<const std::byte> index, const RecordShardName& name,
                               int64_t vocab_size, const Path& data_file, const Path& index_file);
/// The same of files that a killed writer may have left: up to the first block that is not whole. Throws FormatError when
/// their heads are of another shard or set.
RecordShard parse_record_shard_prefix(std::span<const std::byte> data, std::span<const std::byte> index,
                                      const RecordShardName& name, const Path& data_file, const Path& index_file);

Path record_data_file(const Path& directory, size_t shard);
Path record_index_file(const Path& directory, size_t shard);

/// Writes a record set, block by block. What a killed process left in the directory is kept as far as it is whole and goes on;
/// the files are a pure function of the rows and options, however often it was begun again.
class RecordWriter {
 public:
  struct Options {
    std::string set;
    uint64_t shard_bytes = 1ull << 30;  ///< most bytes of a shard's tokens, unless a single row is longer
    uint64_t block_bytes = 1u << 20;
  };

  /// Throws IoError; ConfigError when the directory holds a whole set, or parts of another one.
  RecordWriter(Path directory, const Options& options);
  ~RecordWriter();
  RecordWriter(RecordWriter&&) noexcept;

  /// Rows that are there already, and the number of the last one (0: none).
  int64_t num_rows() const;
  int64_t last_number() const;
  /// Counts after the last row that is there already.
  SourceCounts counts() const;

  /// Adds a row at the end: its tokens as in TokenRows, its number, what was read up to it. Numbers grow from 1. Throws IoError.
  void add(std::span<const int32_t> tokens, int64_t number, const SourceCounts& counts);
  /// Writes the last block and the header, whose statistics are filled in; `description` has the rest. Throws IoError; DataError
  /// when there are no rows.
  RecordHeader finish(RecordHeader description, const SourceCounts& counts);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// A part of a set's rows: the `part`-th of `parts` runs of equal length (up to one row).
struct RecordPart {
  int64_t part = 0, parts = 1;
};

/// A whole record set, or a part of it, mapped and checked.
class RecordSet {
 public:
  /// Opens the shards that the part needs. Throws IoError, FormatError (naming file and offset), ConfigError for a part that is
  /// none.
  explicit RecordSet(const Path& directory, int64_t vocab_size = 0, const RecordPart& part = {});

  const RecordHeader& header() const { return header_; }
  /// The opened shards, in order.
  const std::vector<RecordShard>& shards() const { return shards_; }
  const std::vector<std::shared_ptr<const MappedFile>>& files() const { return files_; }
  /// The part's first row, counted from the first row of shards(), and its number of rows.
  int64_t first_row() const { return first_row_; }
  int64_t num_rows() const { return num_rows_; }

 private:
  void open_shard(const Path& directory, size_t shard, int64_t vocab_size);

  RecordHeader header_;
  std::vector<RecordShard> shards_;
  std::vector<std::shared_ptr<const MappedFile>> files_;  ///< of the tokens
  int64_t first_row_ = 0, num_rows_ = 0;
};

}  // namespace lora::formats
