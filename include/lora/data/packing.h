#pragma once

#include <cstdint>
#include <vector>

#include "lora/data/row_source.h"

namespace lora::data {

/// Rows that share a packed row of at most `max_length` tokens: best fit, longest rows first, rows of equal length in
/// order; a pure function of the lengths. Packs come in the order of their first rows. Numbers are 0-based.
/// Throws ConfigError when a row is longer than a pack.
std::vector<std::vector<int64_t>> pack_rows(const RowSource& rows, int64_t max_length);

}  // namespace lora::data
