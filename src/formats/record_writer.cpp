#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "formats/record_shard.h"
#include "lora/core/file.h"

namespace lora::formats {
namespace {

template <class T>
std::string_view bytes_of(const T* values, size_t count) {
  return {reinterpret_cast<const char*>(values), count * sizeof(T)};
}

void set_digest(std::array<char, kDigestBytes>& target, std::string_view text) { std::ranges::copy(text, target.begin()); }

/// Held as long as a writer lives: two that write the same files would spoil both sets.
class DirectoryLock {
 public:
  explicit DirectoryLock(const Path& directory) : descriptor_(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    require<IoError>(descriptor_ >= 0, "[{}] must be a readable directory; the system says: {}; check the path",
                     directory.string(), std::generic_category().message(errno));
    if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0) return;
    ::close(descriptor_);
    fail<IoError>("[{}] one process at a time can write records here; found another one; wait for it", directory.string());
  }
  ~DirectoryLock() { ::close(descriptor_); }
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

 private:
  int descriptor_;
};

uint64_t size_of(const Path& file) {
  std::error_code error;
  const auto size = std::filesystem::file_size(file, error);
  return error ? 0 : size;
}

void cut_file(const Path& file, uint64_t bytes) {
  std::error_code error;
  std::filesystem::resize_file(file, bytes, error);
  require<IoError>(!error, "[{}] must be writable; the system says: {}; check its permissions", file.string(), error.message());
}

const Path& created(const Path& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  require<IoError>(!error, "[{}] must be a directory that can be written; the system says: {}; choose another one",
                   directory.string(), error.message());
  return directory;
}

}  // namespace

struct RecordWriter::State {
  State(Path path, const Options& chosen) : directory(created(path)), options(chosen), lock(directory) {
    const uint64_t room = options.shard_bytes - std::min<uint64_t>(options.shard_bytes, sizeof(RecordFileHead));
    options.block_bytes = std::min(options.block_bytes, room);
    std::error_code error;
    require<ConfigError>(!std::filesystem::exists(directory / kRecordHeaderFile, error),
                         "[{}] must hold no records yet; found a whole set; choose another directory", directory.string());
    remove_stale_temporaries(directory);
    recover();
  }

  RecordShardName name(size_t shard) const { return {options.set, static_cast<uint32_t>(shard)}; }

  /// Takes over the shards that are there, up to the first block that is not whole.
  void recover() {
    bool is_whole = true;
    while (is_whole && size_of(record_data_file(directory, shards.size())) >= sizeof(RecordFileHead) &&
           size_of(record_index_file(directory, shards.size())) >= sizeof(RecordFileHead)) {
      is_whole = take_over(shards.size());
    }
    for (size_t shard = shards.size(); remove_shard(shard);) ++shard;
  }

  /// False when something of the shard was not whole: what comes after it is not to be kept.
  bool take_over(size_t number) {
    const Path data_file = record_data_file(directory, number), index_file = record_index_file(directory, number);
    size_t data_end = sizeof(RecordFileHead), index_end = sizeof(RecordFileHead);
    {
      const MappedFile data(data_file), index(index_file);
      require_own(data.bytes());
      const RecordShard shard = parse_record_shard_prefix(data.bytes(), index.bytes(), name(number), data_file, index_file);
      count_rows(shard);
      if (!shard.index_ends.empty()) {
        index_end = shard.index_ends.back();
        data_end = shard.data_ends.back();
      }
    }
    const bool is_whole = index_end == size_of(index_file) && data_end == size_of(data_file);
    cut_file(data_file, data_end);
    cut_file(index_file, index_end);
    return is_whole;
  }

  /// What another call left is that call's: it is gone on with, or removed on purpose.
  void require_own(std::span<const std::byte> bytes) const {
    RecordFileHead head;
    std::memcpy(&head, bytes.data(), sizeof(head));
    const bool is_readable = std::ranges::equal(head.magic, kDataMagic) && head.version == kRecordVersion;
    require<ConfigError>(
        !is_readable || std::ranges::equal(head.set, options.set),
        "[{}] records there must be of these data and settings; found a part of others; choose another directory, or "
        "write anew with --overwrite",
        directory.string());
  }

  void count_rows(const RecordShard& shard) {
    size_t begin = 0;
    for (const int64_t end : shard.ends) {
      count_row(shard.tokens.subspan(begin, static_cast<size_t>(end) - begin));
      begin = static_cast<size_t>(end);
    }
    if (!shard.numbers.empty()) {
      counts = shard.counts_of_blocks.back();
      last_number = shard.numbers.back();
    }
    shards.push_back(
        {.rows = static_cast<int64_t>(shard.ends.size()), .tokens = static_cast<int64_t>(begin), .index_digest = {}});
  }

  bool remove_shard(size_t number) const {
    std::error_code error;
    const bool had_data = std::filesystem::remove(record_data_file(directory, number), error);
    const bool had_index = std::filesystem::remove(record_index_file(directory, number), error);
    return had_data || had_index;
  }

  void count_row(std::span<const int32_t> row) {
    const auto length = static_cast<int64_t>(row.size());
    ++total.rows;
    total.tokens += length;
    total.targets += std::count_if(row.begin() + 1, row.end(), [](int32_t token) { return token >= 0; });
    total.shortest = total.rows == 1 ? length : std::min(total.shortest, length);
    total.longest = std::max(total.longest, length);
  }

  void add(std::span<const int32_t> row, int64_t number, const SourceCounts& counts_now) {
    if (!tokens.empty() && (tokens.size() + row.size()) * sizeof(int32_t) > options.block_bytes) write_block();
    const auto target = std::find_if(row.begin(), row.end(), [](int32_t token) { return token >= 0; });
    rows.push_back({number, static_cast<uint32_t>(row.size()), static_cast<uint32_t>(target - row.begin())});
    tokens.insert(tokens.end(), row.begin(), row.end());
    counts = counts_now;
    last_number = number;
    count_row(row);
  }

  void write_block() {
    const uint64_t bytes = tokens.size() * sizeof(int32_t);
    const bool is_full =
        !shards.empty() && shards.back().rows > 0 &&
        sizeof(RecordFileHead) + static_cast<uint64_t>(shards.back().tokens) * sizeof(int32_t) + bytes > options.shard_bytes;
    if (shards.empty() || is_full) begin_shard();
    if (!data) open_files();
    RecordBlock block = {};
    set_digest(block.tokens_digest, digest(std::as_bytes(std::span(tokens))));
    block.rows = static_cast<uint32_t>(rows.size());
    block.tokens = static_cast<uint32_t>(tokens.size());
    block.counts = counts;
    const std::string_view rows_bytes = bytes_of(rows.data(), rows.size());
    const std::array<std::string_view, 2> digested = {bytes_of(&block, 1).substr(kDigestBytes), rows_bytes};
    set_digest(block.digest, digest_of_pieces(digested));

    data->write(bytes_of(tokens.data(), tokens.size()));
    std::string entry(bytes_of(&block, 1));
    index->write(entry.append(rows_bytes));
    shards.back().rows += static_cast<int64_t>(rows.size());
    shards.back().tokens += static_cast<int64_t>(tokens.size());
    tokens.clear();
    rows.clear();
  }

  void begin_shard() {
    close_files();
    const size_t number = shards.size();
    for (const auto& [file, magic] : {std::pair{record_data_file(directory, number), kDataMagic},
                                      std::pair{record_index_file(directory, number), kIndexMagic}}) {
      const RecordFileHead head = record_file_head(magic, name(number));
      OutputFile output(file);
      output.write(bytes_of(&head, 1));
    }
    shards.emplace_back();
  }

  void open_files() {
    data.emplace(record_data_file(directory, shards.size() - 1), true);
    index.emplace(record_index_file(directory, shards.size() - 1), true);
  }

  void close_files() {
    if (data) data->commit();
    if (index) index->commit();
    data.reset();
    index.reset();
  }

  RecordHeader finish(RecordHeader header, const SourceCounts& counts_at_end) {
    if (!rows.empty()) write_block();
    close_files();
    require<DataError>(total.rows > 0, "[{}] records must have rows; found none", directory.string());
    sync_directory(directory);
    header.set = options.set;
    header.rows = total.rows;
    header.tokens = total.tokens;
    header.targets = total.targets;
    header.shortest = total.shortest;
    header.longest = total.longest;
    header.source = counts_at_end;
    header.shards = shards;
    for (size_t i = 0; i < shards.size(); ++i) header.shards[i].index_digest = file_digest(record_index_file(directory, i));
    write_file_atomically(directory / kRecordHeaderFile, record_header_text(header));
    return header;
  }

  Path directory;
  Options options;
  DirectoryLock lock;
  RecordHeader total;  ///< statistics of the rows so far
  std::vector<RecordShardInfo> shards;
  SourceCounts counts;  ///< after the last row
  int64_t last_number = 0;
  std::vector<int32_t> tokens;  ///< of the block that is not written yet
  std::vector<RecordRow> rows;
  std::optional<OutputFile> data, index;
};

RecordWriter::RecordWriter(Path directory, const Options& options)
    : state_(std::make_unique<State>(std::move(directory), options)) {}
RecordWriter::~RecordWriter() = default;
RecordWriter::RecordWriter(RecordWriter&&) noexcept = default;

int64_t RecordWriter::num_rows() const { return state_->total.rows; }
int64_t RecordWriter::last_number() const { return state_->last_number; }
SourceCounts RecordWriter::counts() const { return state_->counts; }

void RecordWriter::add(std::span<const int32_t> tokens, int64_t number, const SourceCounts& counts) {
  require<DataError>(!tokens.empty() && number > state_->last_number,
                     "[records] rows must have tokens and growing numbers; found {} tokens, row {} after {}", tokens.size(),
                     number, state_->last_number);
  state_->add(tokens, number, counts);
}

RecordHeader RecordWriter::finish(RecordHeader description, const SourceCounts& counts) {
  return state_->finish(std::move(description), counts);
}

}  // namespace lora::formats
