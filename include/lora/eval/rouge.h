#pragma once

#include <span>
#include <string_view>

namespace lora::eval {

/// How much of the hypothesis is in the reference (precision), of the reference in the hypothesis
/// (recall), and 2 p r / (p + r + 1e-8); each from 0 to 1.
struct RougeScore {
  double precision = 0, recall = 0, f = 0;
};

/// ROUGE-1, ROUGE-2 and ROUGE-L of one row.
struct RougeScores {
  RougeScore rouge_1;  ///< over the sets of tokens
  RougeScore rouge_2;  ///< over the sets of pairs of neighbours
  RougeScore rouge_l;  ///< over the longest common subsequence of all tokens
};

/// ROUGE of one row of tokens; 0 where either side has no n-gram (no token). Time grows with
/// |hypothesis| * |reference| / 64 words plus the pairs of equal tokens.
///
/// Source: rouge_chinese 1.0.3, Rouge().get_scores on the tokens joined by spaces; it raises for no
/// tokens. Throws DataError when |hypothesis| * |reference| is beyond 2^32.
RougeScores rouge(std::span<const std::string_view> hypothesis, std::span<const std::string_view> reference);

}  // namespace lora::eval
