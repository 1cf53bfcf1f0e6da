#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "lora/core/path.h"
#include "lora/data/dataset.h"
#include "lora/data/tokenizer.h"
#include "lora/formats/records.h"

namespace lora::data {

/// How a record set is written.
struct RecordOptions {
  DatasetOptions rows = {};  ///< keep_text_pairs and cache_dir are not looked at
  uint64_t shard_bytes = 1ull << 30;
  std::vector<int64_t> leave_out = {};              ///< numbers of rows, growing
  std::function<void()> between_batches = nullptr;  ///< called now and then; may throw to stop
};

/// What write_records wrote, or found.
struct WrittenRecords {
  formats::RecordHeader header;
  bool was_there = false;                    ///< the whole set was written earlier
  int64_t rows_from_before = 0;              ///< of a run that was cut off
  std::vector<std::string> bad_row_reasons;  ///< the first ten of this run
};

/// Tokenises a file as load_dataset does into a record set (see RecordWriter) in `directory`. What a run that was cut off left
/// there goes on; the files are those of an uninterrupted run. A whole set of the same content is left as it is. Throws as
/// load_dataset; ConfigError when the directory holds records of other data or settings.
WrittenRecords write_records(const Path& source, const Path& directory, const RecordOptions& options, const Tokenizer* tokenizer);

/// A record set's rows, read where they lie. Throws IoError, FormatError; DataError when a row is longer than
/// options.max_length, or another tokenizer made them than the one given (null: any).
Dataset open_records(const Path& directory, const DatasetOptions& options, const Tokenizer* tokenizer,
                     const formats::RecordPart& part = {});

}  // namespace lora::data
