// Rows that a test lists, good or bad.
#pragma once

#include <vector>

#include "lora/data/row_source.h"

namespace lora::testing {

struct ListedRows : data::RowSource {
  std::vector<data::Example> examples;

  int64_t size() const override { return static_cast<int64_t>(examples.size()); }
  int64_t length(int64_t row) const override { return static_cast<int64_t>(examples[static_cast<size_t>(row)].input_ids.size()); }
  void read(int64_t row, data::Example& example) const override { example = examples[static_cast<size_t>(row)]; }
};

}  // namespace lora::testing
