#pragma once

#include <cstdint>

#include "lora/data/example.h"

namespace lora::data {

/// Rows of tokens that a Loader makes batches of. Several threads read at once.
class RowSource {
 public:
  virtual ~RowSource() = default;
  virtual int64_t size() const = 0;
  /// Number of tokens of a row (from 0), known without reading it.
  virtual int64_t length(int64_t row) const = 0;
  /// Puts a row into `example`, whose memory is used again.
  virtual void read(int64_t row, Example& example) const = 0;
};

}  // namespace lora::data
