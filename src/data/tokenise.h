#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/row_encoder.h"
#include "lora/core/path.h"
#include "lora/data/dataset.h"

namespace lora::data {

/// What was read of a source so far.
struct TokenisedRows {
  int64_t num_rows = 0;      ///< good and bad; `text`: documents
  int64_t num_bad_rows = 0;  ///< left out
  int64_t num_truncated = 0;
  std::vector<std::string> bad_row_reasons;  ///< the first ten
};

struct TokeniseOptions {
  int64_t skipped_rows = 0;                         ///< rows at the beginning that are read over; not for `text`
  std::function<void()> between_batches = nullptr;  ///< may throw to stop
};

/// Gets every usable row, in order, with what was read up to it.
using TakeRow = std::function<void(EncodedRow row, const TokenisedRows& read)>;

/// Reads and tokenises a file as load_dataset describes, row by row; `read` is counted on.
void tokenise(const Path& file, const DatasetOptions& options, const Tokenizer* tokenizer, const TokeniseOptions& how,
              TokenisedRows& read, const TakeRow& take_row);

/// Throws ConfigError for options that make no sense, or a missing tokenizer.
void check_dataset_options(const DatasetOptions& options, const Tokenizer* tokenizer);

}  // namespace lora::data
