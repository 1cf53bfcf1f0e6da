#pragma once

#include <string_view>

namespace lora::eval {

/// BLEU-4 of one row on characters (Unicode code points; a byte that is not part of well-formed
/// UTF-8 counts as one U+FFFD), from 0 to 1: exp of the mean of log p_n, n = 1..4, with clipped
/// counts of n-grams over max(1, their number), times exp(1 - |reference| / |hypothesis|) where the
/// hypothesis is not longer. The k-th p_n without a match is 1 / (2^k * its denominator). 0 for an
/// empty text and where no character matches.
///
/// Source: nltk 3.10 sentence_bleu([list(reference)], list(hypothesis),
/// smoothing_function=SmoothingFunction().method3), after Chen and Cherry (2014), method 3. Throws
/// DataError for a text beyond 4 MiB.
double bleu4(std::string_view hypothesis, std::string_view reference);

}  // namespace lora::eval
