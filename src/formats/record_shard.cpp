#include "formats/record_shard.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "lora/core/file.h"

namespace lora::formats {
namespace {

/// Takes a shard's blocks off its two files, front to back.
class ShardParser {
 public:
  ShardParser(std::span<const std::byte> data, std::span<const std::byte> index, const RecordShardName& name,
              const Path& data_file, const Path& index_file)
      : data_(data), index_(index), name_(name), data_name_(data_file.string()), index_name_(index_file.string()) {}

  void check_heads() const {
    check_head(data_, kDataMagic, data_name_);
    check_head(index_, kIndexMagic, index_name_);
  }

  bool index_is_at_end() const { return index_at_ == index_.size(); }
  void require_all_data_taken() const { must(data_at_ == data_.size(), data_name_, data_at_, "end where its index ends"); }

  /// Adds the next block to `shard`, which is unchanged when this throws.
  void take_block(int64_t vocab_size, RecordShard& shard) {
    must(index_.size() - index_at_ >= sizeof(RecordBlock), index_name_, index_at_, "go on with a whole block");
    RecordBlock block;
    std::memcpy(&block, index_.data() + index_at_, sizeof(block));
    const size_t rows_at = index_at_ + sizeof(block);
    must(block.rows > 0 && block.rows <= (index_.size() - rows_at) / sizeof(RecordRow), index_name_, index_at_,
         "have a block's rows");
    const size_t block_end = rows_at + block.rows * sizeof(RecordRow);
    const auto digested = index_.subspan(index_at_ + kDigestBytes, block_end - index_at_ - kDigestBytes);
    must(std::ranges::equal(block.digest, digest(digested)), index_name_, index_at_, "have the digest of this block");
    must(block.tokens <= (data_.size() - data_at_) / sizeof(int32_t), data_name_, data_at_, "have the tokens of a block");
    const auto tokens = data_.subspan(data_at_, block.tokens * sizeof(int32_t));
    must(std::ranges::equal(block.tokens_digest, digest(tokens)), data_name_, data_at_, "have the digest of this block");
    check_ids(tokens, vocab_size);
    const auto rows = index_.subspan(rows_at, block_end - rows_at);
    check_rows(rows, block, shard.numbers.empty() ? 0 : shard.numbers.back());
    append_rows(rows, shard);

    index_at_ = block_end;
    data_at_ += tokens.size();
    shard.tokens = {reinterpret_cast<const int32_t*>(data_.data() + sizeof(RecordFileHead)),
                    (data_at_ - sizeof(RecordFileHead)) / sizeof(int32_t)};
    shard.counts_of_blocks.push_back(block.counts);
    shard.index_ends.push_back(index_at_);
    shard.data_ends.push_back(data_at_);
  }

 private:
  void must(bool holds, const std::string& file, size_t offset, std::string_view what) const {
    require<FormatError>(holds, "[{}] a record file must {} at byte {}; it is damaged or not whole; prepare the data again", file,
                         what, offset);
  }

  void check_head(std::span<const std::byte> bytes, std::string_view magic, const std::string& file) const {
    must(bytes.size() >= sizeof(RecordFileHead), file, 0, "have a head of 64 bytes");
    RecordFileHead head;
    std::memcpy(&head, bytes.data(), sizeof(head));
    must(std::ranges::equal(head.magic, magic), file, 0, "have its magic bytes");
    require<FormatError>(head.version == kRecordVersion,
                         "[{}] a record file must be of version {}; found {} at byte 40; prepare the data again", file,
                         kRecordVersion, head.version);
    require<FormatError>(std::ranges::equal(head.set, name_.set),
                         "[{}] a record file must belong to its set; found another set at byte 8; put back the set's own file",
                         file);
    require<FormatError>(head.shard == name_.shard,
                         "[{}] a record file must be shard {} of its set; found {} at byte 44; put back the right one", file,
                         name_.shard, head.shard);
    must(std::ranges::all_of(head.unused, [](char byte) { return byte == 0; }), file, 48, "have zeros");
  }

  void check_ids(std::span<const std::byte> bytes, int64_t vocab_size) const {
    if (vocab_size <= 0) return;
    const std::span ids(reinterpret_cast<const int32_t*>(bytes.data()), bytes.size() / sizeof(int32_t));
    int32_t largest = 0;
    for (const int32_t token : ids) largest = std::max(largest, token & kTokenId);
    require<FormatError>(largest < vocab_size,
                         "[{}] ids must be in the model's vocabulary of {}; found {} after byte {}; prepare the data with "
                         "the model's tokenizer",
                         data_name_, vocab_size, largest, data_at_);
  }

  static RecordRow row_at(std::span<const std::byte> rows, size_t at) {
    RecordRow row;
    std::memcpy(&row, rows.data() + at, sizeof(row));
    return row;
  }

  void check_rows(std::span<const std::byte> rows, const RecordBlock& block, int64_t last_number) const {
    uint64_t tokens = 0;
    for (size_t at = 0; at < rows.size(); at += sizeof(RecordRow)) {
      const RecordRow row = row_at(rows, at);
      const size_t offset = index_at_ + sizeof(RecordBlock) + at;
      must(row.number > last_number, index_name_, offset, "have rows in order");
      must(row.length > 0 && std::cmp_less_equal(row.length, INT32_MAX) && row.target_start <= row.length, index_name_, offset,
           "have a row with tokens");
      last_number = row.number;
      tokens += row.length;
    }
    must(tokens == block.tokens, index_name_, index_at_, "have rows that make up the block's tokens");
  }

  static void append_rows(std::span<const std::byte> rows, RecordShard& shard) {
    int64_t end = shard.ends.empty() ? 0 : shard.ends.back();
    for (size_t at = 0; at < rows.size(); at += sizeof(RecordRow)) {
      const RecordRow row = row_at(rows, at);
      end += row.length;
      shard.ends.push_back(end);
      shard.numbers.push_back(row.number);
      shard.target_starts.push_back(static_cast<int32_t>(row.target_start));
    }
  }

  std::span<const std::byte> data_, index_;
  const RecordShardName& name_;
  std::string data_name_, index_name_;
  size_t data_at_ = sizeof(RecordFileHead), index_at_ = sizeof(RecordFileHead);
};

}  // namespace

RecordFileHead record_file_head(std::string_view magic, const RecordShardName& name) {
  RecordFileHead head = {};
  require<ConfigError>(name.set.size() == head.set.size(), "[records] a set must be named by {} digits; found {}",
                       head.set.size(), name.set);
  std::ranges::copy(magic, head.magic.begin());
  std::ranges::copy(name.set, head.set.begin());
  head.version = kRecordVersion;
  head.shard = name.shard;
  return head;
}

RecordShard parse_record_shard(std::span<const std::byte> data, std::span<const std::byte> index, const RecordShardName& name,
                               int64_t vocab_size, const Path& data_file, const Path& index_file) {
  ShardParser parser(data, index, name, data_file, index_file);
  parser.check_heads();
  RecordShard shard;
  while (!parser.index_is_at_end()) parser.take_block(vocab_size, shard);
  parser.require_all_data_taken();
  return shard;
}

RecordShard parse_record_shard_prefix(std::span<const std::byte> data, std::span<const std::byte> index,
                                      const RecordShardName& name, const Path& data_file, const Path& index_file) {
  ShardParser parser(data, index, name, data_file, index_file);
  parser.check_heads();
  RecordShard shard;
  try {
    while (!parser.index_is_at_end()) parser.take_block(0, shard);
  } catch (const FormatError&) {  // what the killed writer did not finish
  }
  return shard;
}

Path record_data_file(const Path& directory, size_t shard) { return directory / fmt::format("shard-{:05}.records", shard); }
Path record_index_file(const Path& directory, size_t shard) { return directory / fmt::format("shard-{:05}.index", shard); }

}  // namespace lora::formats
