#pragma once

#include <memory>

#include "lora/core/path.h"
#include "lora/data/glm_tokenizer.h"
#include "lora/models/glm/model.h"
#include "lora/nn/model_weights.h"

namespace lora::glm {

using nn::LoadOptions;
using nn::SaveOptions;

/// Loads a model directory in the published layout (config.json, model.safetensors or shards), tensor by tensor into the
/// wanted type and device; norms stay in fp32 where that is half precision. Every weight must be there, in its shape, and
/// nothing else (rotary_emb.inv_freq aside, and a tied head's own copy); otherwise ShapeError names up to five of each. On the
/// meta device the files are checked and no weight is read. Few bits and offloading as in llama::load. Throws IoError,
/// FormatError, ConfigError.
std::shared_ptr<ChatGlmForConditionalGenerationImpl> load(const Path& directory, const LoadOptions& options = {});

/// ice_text.model of a model directory. Throws IoError when there is none.
std::shared_ptr<const data::GlmTokenizer> load_tokenizer(const Path& directory);

/// See nn::offload_to_host.
void offload_to_host(ChatGlmForConditionalGenerationImpl& model, const at::Device& device);

/// Writes config.json, generation_config.json, weights and tokenizer files (ice_text.model and its companions) into an
/// existing directory, in the published layout. Attached adapters are not written; merged ones are in the weights. Throws
/// ConfigError where `quantized` cannot be kept: weights of several schemes, or none in few bits.
void save(ChatGlmForConditionalGenerationImpl& model, const Path& directory, const SaveOptions& options = {});

/// Copies a model directory into another, existing one, as `save` would write it, tensor by tensor: in another type or sharding,
/// few bits as the plain numbers that they stand for. Its weights must be as `load` wants them. Throws IoError, FormatError,
/// ShapeError.
void convert_hf(const Path& from, const Path& directory, const SaveOptions& options = {});

}  // namespace lora::glm
