#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lora/ops/batch.h"

namespace lora::data {

using lora::kIgnoreLabel;

/// One row as tokens. labels has the length of input_ids: the same id where it is a target, else
/// kIgnoreLabel (unshifted; the loss compares labels[i + 1] with the prediction at i).
struct Example {
  std::vector<int32_t> input_ids, labels;
  int64_t row = 0;  ///< number in the file, from 1 (for `text`: of the block)

  /// Labels that count: all but the first, other than kIgnoreLabel.
  int64_t num_targets() const;
};

/// A text row as a person wrote it, kept for showing generations: what is asked and what is
/// expected.
struct TextPair {
  std::string prompt, response;
};

}  // namespace lora::data
