#pragma once

#include <cstdint>
#include <string>

#include "lora/data/row_source.h"
#include "lora/data/tokenizer.h"

namespace lora::data {

/// What a data set teaches, checked before the first step.
struct SupervisionReport {
  int64_t num_rows = 0, num_tokens = 0, num_targets = 0;
  int64_t rows_without_targets = 0;
  int64_t rows_with_end_token = 0;  ///< rows whose end token is a target
  std::string shown;                ///< one row, decoded, with its mask made visible

  bool teaches_nothing() const { return num_targets == 0; }
  bool never_teaches_the_end() const { return rows_with_end_token == 0; }
};

/// Counts targets and renders the first row that has any (else the first row) on one line:
/// `[masked] prompt [target] answer </s>`, long parts shortened. Without a tokenizer ids are shown.
/// `end_id` -1: the end token is not looked for.
SupervisionReport check_supervision(const RowSource& rows, const Tokenizer* tokenizer, int64_t end_id);

}  // namespace lora::data
