#pragma once

#include <optional>

#include "lora/core/path.h"
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

}  // namespace lora::llama
