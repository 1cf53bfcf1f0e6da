#pragma once

#include <cstdint>
#include <vector>

#include "lora/data/dataset.h"
#include "lora/data/tokenizer.h"

namespace lora::data {

/// Characters of a run that two answers hardly share by chance.
constexpr size_t kOverlapCharacters = 13;

/// Rows of an evaluation set (from 0) that are no test of what was learned.
struct Overlap {
  std::vector<int64_t> equal;    ///< their tokens are those of a training row
  std::vector<int64_t> sharing;  ///< their answers have kOverlapCharacters characters in a row that a training answer has, too
};

/// Rows of `evaluation` whose tokens occur in `training`: exact, whatever their number.
std::vector<int64_t> find_equal_rows(const Dataset& training, const Dataset& evaluation);

/// Rows of `evaluation` whose answers (the text of a row's targets) share a run of characters with an answer in `training`.
/// Answers shorter than the run are compared by nothing. Takes memory for `evaluation` alone.
std::vector<int64_t> find_sharing_rows(const Dataset& training, const Dataset& evaluation, const Tokenizer& tokenizer);

/// Both; `sharing` stays empty without a tokenizer.
Overlap find_overlap(const Dataset& training, const Dataset& evaluation, const Tokenizer* tokenizer);

/// A copy of the tokens of `dataset` without some of its rows (from 0, growing); texts are left out.
Dataset without_rows(const Dataset& dataset, const std::vector<int64_t>& rows);

}  // namespace lora::data
