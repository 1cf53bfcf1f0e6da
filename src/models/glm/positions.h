// Where prompts and answers stand in the rows of a batch, and the two positions of every token.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "lora/models/glm/config.h"
#include "lora/nn/kv_cache.h"
#include "lora/ops/batch.h"

// Legend: B rows, S places of a row.
namespace lora::glm {

using at::Tensor;

/// One sequence: a row of the batch, or a part of a packed row.
struct PromptPlace {
  int64_t begin = 0;    ///< its first token's place in the row; padding stands before it
  int64_t context = 0;  ///< how many tokens stand before <sop>; they see each other
  int64_t mask = 0;     ///< which of them is the [gMASK] (or [MASK]) that the answer stands for

  /// Where the answer begins in the row.
  int64_t end() const { return begin + context; }
};

/// What a cache remembers of its rows.
struct PromptNotes : nn::CacheNotes {
  std::shared_ptr<const nn::CacheNotes> with_rows(const std::vector<int64_t>& rows) const override;
  std::shared_ptr<const nn::CacheNotes> without_first(int64_t count) const override;

  std::vector<PromptPlace> places;
  int64_t num_embedded = 0;  ///< embeddings of virtual tokens before each
};

/// The sequences of a batch without cached tokens, in their order. Throws DataError, naming the row, for one without exactly
/// one <sop>, or without [gMASK] or [MASK] before it. What is masked is no token; what fills up a packed row, one token over
/// and over at its end, has no answer.
std::vector<PromptPlace> prompt_places(const Batch& batch, const GlmConfig& config);

/// Virtual places before each sequence.
struct VirtualPlaces {
  int64_t prefixed = 0;  ///< keys that are not rotated: position 0
  int64_t embedded = 0;  ///< the first tokens of the prompt
};

/// The positions in the sequence and in the answer, each (B, S) or of a packed row (1, S), of places `first` to `first` +
/// length of each row, or of all places of sequences of `lengths`; virtual ones, where they are given, stand before.
std::pair<Tensor, Tensor> positions_of(const std::vector<PromptPlace>& places, int64_t first, int64_t length,
                                       const std::vector<int64_t>& lengths, const VirtualPlaces& before, int64_t num_embedded,
                                       const at::Device& device);

}  // namespace lora::glm
