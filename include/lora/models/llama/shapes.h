#pragma once

#include "lora/models/llama/model.h"
#include "lora/nn/decoder_shapes.h"

namespace lora::llama {

/// Widths of the model's parts and what trains now; reads no weight, so that a model on the meta device will do.
nn::DecoderShapes shapes_of(LlamaForCausalLMImpl& model);

}  // namespace lora::llama
