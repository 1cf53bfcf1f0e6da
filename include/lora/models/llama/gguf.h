#pragma once

#include <vector>

#include "lora/adapters/low_rank.h"
#include "lora/core/dtype.h"
#include "lora/core/path.h"
#include "lora/formats/gguf.h"
#include "lora/models/llama/config.h"

namespace lora::llama {

/// Writes a GGUF LoRA, which llama.cpp adds to a Llama of `config`; the file appears whole or not at all. Returns its header.
///
/// The format knows one alpha for all modules and divides it by each module's rank, so every update's own scale is folded
/// into its B (unchanged where the scale is alpha / rank). Rows of q's and k's B are put into llama.cpp's rotary order, an
/// embedding's A is transposed. Updates of rank 0 are left out. `alpha` must not be 0. `dtype`: F32, F16 or BF16.
///
/// What is scale * B A in any way can be written: AdaLoRA as A * E (by rows), B and alpha / (init_r + 1e-5).
///
/// Throws ShapeError for Baichuan's W_pack, modules that the model does not have, shapes that do not fit it, a tied embedding and
/// no update at all; NonFiniteError for numbers that are not finite in `dtype`; ConfigError for another dtype; IoError. Source:
/// llama.cpp convert_lora_to_gguf.py and src/llama-adapter.cpp.
formats::GgufHeader save_gguf_lora(const Path& file, const LlamaConfig& config, const std::vector<LowRankValue>& updates,
                                   double alpha, DType dtype = DType::kF32);

/// The same of a LoRA or rsLoRA adapter's files with ranks and alphas by module, `alpha` being its lora_alpha. Throws, naming
/// it, for what the format cannot say (ShapeError): DoRA, AdaLoRA, IA3, prompts, biases, modules trained whole; and when the
/// modules are not those that the config means.
formats::GgufHeader save_gguf_lora(const Path& file, const LlamaConfig& config, const io::AdapterFiles& files,
                                   DType dtype = DType::kF32);

}  // namespace lora::llama
