#pragma once

#include "lora/models/glm/model.h"
#include "lora/nn/decoder_shapes.h"

namespace lora::glm {

/// Widths of the model's parts and what trains now; reads no weight, so that a model on the meta device will do. The feed-forward
/// is not gated: gate_up has one product.
nn::DecoderShapes shapes_of(ChatGlmForConditionalGenerationImpl& model);

}  // namespace lora::glm
