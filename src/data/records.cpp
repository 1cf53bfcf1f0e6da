#include "lora/data/records.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "data/dataset_cache.h"
#include "data/tokenise.h"
#include "lora/core/file.h"
#include "lora/core/log.h"

namespace lora::data {
namespace {

using formats::RecordHeader;
using formats::SourceCounts;

/// Names the set: everything that its files depend on.
std::string set_digest(const Path& source, const RecordOptions& options, const Tokenizer* tokenizer) {
  const std::string text =
      fmt::format("{}shard bytes {}\nleft out {}\n", dataset_description(source, file_digest(source), options.rows, tokenizer),
                  options.shard_bytes, fmt::join(options.leave_out, " "));
  return digest(std::as_bytes(std::span(text)));
}

std::optional<RecordHeader> whole_set(const Path& directory) {
  const Path file = directory / formats::kRecordHeaderFile;
  std::error_code error;
  if (!std::filesystem::exists(file, error)) return std::nullopt;
  return formats::parse_record_header(read_file(file), file.string());
}

/// Means something to ChatGLM's rows alone.
std::optional<bool> train_on_sop(const DatasetOptions& rows, const Tokenizer* tokenizer) {
  const bool has_sop = rows.format == "adgen" && tokenizer != nullptr && tokenizer->glm_ids();
  return has_sop ? std::optional(rows.train_on_sop) : std::nullopt;
}

SourceCounts counts_of(const TokenisedRows& read) {
  return {.rows = static_cast<uint64_t>(read.num_rows),
          .bad_rows = static_cast<uint64_t>(read.num_bad_rows),
          .truncated = static_cast<uint64_t>(read.num_truncated)};
}

/// Tokens as TokenRows have them.
void pack(const Example& example, std::vector<int32_t>& tokens) {
  tokens.resize(example.input_ids.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    const int32_t id = example.input_ids[i];
    tokens[i] = example.labels[i] == kIgnoreLabel ? id | formats::kMaskedToken : id;
  }
}

/// Reads on after the rows of a run that was cut off. Documents of `text` share rows: they are read again from the
/// start.
void write_rest(const Path& source, const RecordOptions& options, const Tokenizer* tokenizer, formats::RecordWriter& writer,
                TokenisedRows& read) {
  const bool goes_on = options.rows.format != "text";
  if (goes_on) {
    read.num_bad_rows = static_cast<int64_t>(writer.counts().bad_rows);
    read.num_truncated = static_cast<int64_t>(writer.counts().truncated);
  }
  const TokeniseOptions how{.skipped_rows = goes_on ? static_cast<int64_t>(writer.counts().rows) : 0,
                            .between_batches = options.between_batches};
  const int64_t written = writer.last_number();
  std::vector<int32_t> tokens;
  tokenise(source, options.rows, tokenizer, how, read, [&](const EncodedRow& row, const TokenisedRows& so_far) {
    const int64_t number = row.example.row;
    if (number <= written || std::ranges::binary_search(options.leave_out, number)) return;
    pack(row.example, tokens);
    writer.add(tokens, number, counts_of(so_far));
  });
}

}  // namespace

WrittenRecords write_records(const Path& source, const Path& directory, const RecordOptions& options,
                             const Tokenizer* tokenizer) {
  check_dataset_options(options.rows, tokenizer);
  const std::string set = set_digest(source, options, tokenizer);
  WrittenRecords result;
  if (auto header = whole_set(directory)) {
    require<ConfigError>(header->set == set,
                         "[{}] records there must be of these data and settings; found others; choose another directory, or "
                         "write anew with --overwrite",
                         directory.string());
    result.header = *std::move(header);
    result.was_there = true;
    return result;
  }
  formats::RecordWriter writer(directory, {.set = set, .shard_bytes = options.shard_bytes});
  result.rows_from_before = writer.num_rows();
  TokenisedRows read;
  write_rest(source, options, tokenizer, writer, read);
  require<DataError>(writer.num_rows() > 0, "[{}] a data set must have usable rows; found {} rows, {} of them bad",
                     source.string(), read.num_rows, read.num_bad_rows);
  result.header = writer.finish({.format = options.rows.format,
                                 .tokenizer = tokenizer == nullptr ? "" : tokenizer->fingerprint(),
                                 .vocab_size = options.rows.vocab_size,
                                 .train_on_sop = train_on_sop(options.rows, tokenizer)},
                                counts_of(read));
  result.bad_row_reasons = std::move(read.bad_row_reasons);
  return result;
}

Dataset open_records(const Path& directory, const DatasetOptions& options, const Tokenizer* tokenizer,
                     const formats::RecordPart& part) {
  auto set = std::make_shared<const formats::RecordSet>(directory, options.vocab_size, part);
  const RecordHeader& header = set->header();
  const bool same_tokenizer = tokenizer == nullptr || header.tokenizer.empty() || tokenizer->fingerprint() == header.tokenizer;
  require<DataError>(
      same_tokenizer,
      "[{}] records must be made with the model's tokenizer; found another one's digest {}; prepare the data again",
      directory.string(), header.tokenizer);
  require<DataError>(header.longest <= options.max_length,
                     "[{}] rows must have at most {} tokens; the longest has {}; prepare the data again with that limit",
                     directory.string(), options.max_length, header.longest);
  if (header.train_on_sop && *header.train_on_sop != options.train_on_sop) {
    log::warn(fmt::format("[{}] the records were made with data.train_on_sop {}, which stands; the run file says {}",
                          directory.string(), *header.train_on_sop, options.train_on_sop));
  }
  return Dataset(std::move(set));
}

}  // namespace lora::data
