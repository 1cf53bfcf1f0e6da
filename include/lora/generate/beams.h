#pragma once

#include <cstdint>

namespace lora::generate {

/// When a beam search with as many ended sequences as beams is over.
enum class EarlyStopping {
  kNo,     ///< once the best running one would rank lower, were it to end now
  kYes,    ///< at once
  kNever,  ///< once no running one can rank higher, whatever its length
};

/// Beam search as transformers does it: sequences rank by log-probability / length^length_penalty.
struct BeamOptions {
  int64_t num_beams = 1;      ///< 1: no beam search
  double length_penalty = 1;  ///< above 0 for longer sequences, below 0 for shorter ones
  EarlyStopping early_stopping = EarlyStopping::kNo;
  int64_t num_sequences = 1;  ///< how many of the best are returned (transformers' num_return_sequences)
};

/// Throws ConfigError unless num_beams >= num_sequences >= 1 and length_penalty is finite.
void check_options(const BeamOptions& options);

}  // namespace lora::generate
