#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "lora/core/path.h"
#include "lora/data/new_tokens.h"
#include "lora/formats/llama2c.h"
#include "lora/models/llama/load.h"

namespace lora::llama {

/// Rows of a q or k projection from Meta's rotary order (pairs 2i, 2i+1) to Hugging Face's (i, i + K/2).
/// weight: (heads * K, in). Source: transformers convert_llama_weights_to_hf.py.
at::Tensor meta_to_hf_rotary(const at::Tensor& weight, int64_t heads);

/// True when the file's beginning can be a llama2.c checkpoint. Throws IoError.
bool is_llama2c(const Path& file);

/// What a llama2.c checkpoint holds, its weights unread. Throws IoError, FormatError.
formats::Llama2cFile read_llama2c(const Path& file);

/// Converts a llama2.c checkpoint (legacy or version 1) into `directory`, which must exist; streams tensor by tensor.
LlamaConfig convert_llama2c(const Path& file, const Path& directory, const SaveOptions& options = {});

/// The configuration that convert_llama2c would write.
LlamaConfig llama2c_config(const Path& file, const SaveOptions& options = {});

/// Copies a Hugging Face directory into `directory`, changing type or sharding.
LlamaConfig convert_hf(const Path& from, const Path& directory, const SaveOptions& options = {});

/// How a vocabulary grows.
struct VocabularyGrowth {
  data::ExtendedTokenizer tokenizer;
  /// mean (of the rows of the token's old pieces) | random (normal, with the standard deviation of the old pieces' rows)
  std::string new_rows = "mean";
  uint64_t seed = 0;
  int64_t multiple = 1;  ///< of which the number of rows is to be, when it grows
};

/// How many rows embedding and head have afterwards: those that they have, or more when the tokens need them. Throws ConfigError
/// for other words and numbers than those above, ShapeError when the tokenizer had more pieces than the model has rows.
int64_t grown_vocabulary(const LlamaConfig& config, const VocabularyGrowth& growth);

/// convert_hf with more tokens: rows for them in the embedding and in the head (a tied one is the embedding), the new
/// tokenizer.model, and the tokens in the files of transformers that lie beside the old one. Rows behind the last token, of which
/// nobody has an id, are the mean of all rows. Throws DataError for a token that "mean" finds nothing of.
LlamaConfig convert_hf_with_tokens(const Path& from, const Path& directory, const VocabularyGrowth& growth,
                                   const SaveOptions& options = {});

}  // namespace lora::llama
