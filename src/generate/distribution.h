// What logits and scores must be to choose from.
#pragma once

#include "core/check.h"

namespace lora::generate {

/// Throws NonFiniteError unless the logits that were looked at have a distribution.
inline void require_distribution(bool holds) {
  require<NonFiniteError>(holds,
                          "[logits] must be finite or -infinity, and not all the latter; found "
                          "NaN, +infinity or nothing finite; look for broken weights with `lora "
                          "inspect`, or run in fp32 or bf16");
}

/// Throws ConfigError unless the rules leave something to choose.
inline void require_choice(bool holds) {
  require<ConfigError>(
      holds,
      "[generate] the rules must leave a token to choose; found none; set no_repeat_ngram_size or min_new_tokens "
      "lower");
}

}  // namespace lora::generate
