#include <algorithm>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "lora/core/file.h"
#include "lora/formats/records.h"

namespace lora::formats {
namespace {

/// The files of a set's shards are numbered from 0 on; one of another number is of another set.
void require_no_other_shards(const Path& directory, size_t shards) {
  std::set<Path> own;
  for (size_t i = 0; i < shards; ++i) {
    own.insert(record_data_file(directory, i).filename());
    own.insert(record_index_file(directory, i).filename());
  }
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    const Path name = entry.path().filename();
    const bool is_shard = name.string().starts_with("shard-") && (name.extension() == ".records" || name.extension() == ".index");
    require<FormatError>(!is_shard || own.contains(name),
                         "[{}] must be one of the set's {} shards; found one more; remove what does not belong to the set",
                         entry.path().string(), shards);
  }
}

void require_shard_is_there(const Path& file, size_t shards) {
  std::error_code error;
  require<IoError>(std::filesystem::is_regular_file(file, error),
                   "[{}] must be there as a part of a set of {} shards; found no such file; copy the "
                   "whole directory",
                   file.string(), shards);
}

/// Whoever makes room for the longest row relies on there being none longer.
void require_lengths(const std::vector<int64_t>& ends, const RecordHeader& header, const Path& index_file) {
  int64_t begin = 0;
  for (const int64_t end : ends) {
    const int64_t length = end - std::exchange(begin, end);
    require<FormatError>(length >= header.shortest && length <= header.longest,
                         "[{}] rows must have from {} to {} tokens, as {} says; found one of {}; prepare the data again",
                         index_file.string(), header.shortest, header.longest, kRecordHeaderFile, length);
  }
}

/// The first row of a part: the first parts have one row more where the rows do not divide.
int64_t bound(int64_t rows, int64_t part, int64_t parts) { return rows / parts * part + std::min(part, rows % parts); }

}  // namespace

RecordSet::RecordSet(const Path& directory, int64_t vocab_size, const RecordPart& part) {
  require<ConfigError>(part.parts >= 1 && part.part >= 0 && part.part < part.parts,
                       "[records] a part must be one of 0 to {}; found {}", part.parts - 1, part.part);
  const Path header_file = directory / kRecordHeaderFile;
  std::error_code error;
  require<IoError>(std::filesystem::exists(header_file, error),
                   "[{}] must be a whole record set; found no {} in it; finish lora prepare first", directory.string(),
                   kRecordHeaderFile);
  header_ = parse_record_header(read_file(header_file), header_file.string());
  require_no_other_shards(directory, header_.shards.size());

  const int64_t begin = bound(header_.rows, part.part, part.parts), end = bound(header_.rows, part.part + 1, part.parts);
  num_rows_ = end - begin;
  int64_t shard_begin = 0;
  for (size_t i = 0; i < header_.shards.size(); ++i) {
    const int64_t shard_end = shard_begin + header_.shards[i].rows;
    if (shard_begin < end && shard_end > begin) {
      if (shards_.empty()) first_row_ = begin - shard_begin;
      open_shard(directory, i, vocab_size);
    }
    shard_begin = shard_end;
  }
}

void RecordSet::open_shard(const Path& directory, size_t i, int64_t vocab_size) {
  const Path data_file = record_data_file(directory, i), index_file = record_index_file(directory, i);
  for (const Path& file : {data_file, index_file}) require_shard_is_there(file, header_.shards.size());
  auto data = std::make_shared<const MappedFile>(data_file);
  const MappedFile index(index_file);
  const RecordShardName name{header_.set, static_cast<uint32_t>(i)};
  RecordShard shard = parse_record_shard(data->bytes(), index.bytes(), name, vocab_size, data_file, index_file);
  const auto& info = header_.shards[i];
  const bool is_listed = digest(index.bytes()) == info.index_digest && std::cmp_equal(shard.ends.size(), info.rows) &&
                         std::cmp_equal(shard.tokens.size(), info.tokens);
  require<FormatError>(is_listed, "[{}] must be the index that {} lists; found another one from byte 64; prepare the data again",
                       index_file.string(), kRecordHeaderFile);
  require_lengths(shard.ends, header_, index_file);
  shards_.push_back(std::move(shard));
  files_.push_back(std::move(data));
}

}  // namespace lora::formats
