#pragma once

#include <memory>

#include "lora/core/path.h"
#include "lora/data/tokenizer.h"
#include "lora/models/llama/model.h"
#include "lora/nn/model_weights.h"

namespace lora::llama {

using nn::LoadOptions;
using nn::SaveOptions;

/// Loads a model directory in Hugging Face's layout (config.json, model.safetensors or shards), tensor by tensor into
/// the wanted type and device. Every weight must be there, in its shape, and nothing else (rotary_emb.inv_freq aside);
/// otherwise ShapeError names up to five of each. On the meta device the files are checked and no weight is read: a model of
/// shapes alone. Throws IoError, FormatError.
///
/// Weights of the layers that bitsandbytes stored in few bits stay so. Plain ones beside them do when config.json's
/// llm_int8_skip_modules names them, and are quantised as it says otherwise. Nothing quantised streams: ConfigError with
/// `offload`.
std::shared_ptr<LlamaForCausalLMImpl> load(const Path& directory, const LoadOptions& options = {});

/// Moves the weights of the layers' products into (pinned) host memory, from where they stream to `device`; the rest moves
/// there. Nothing where `device` is the CPU.
void offload_to_host(LlamaForCausalLMImpl& model, const at::Device& device);

/// tokenizer.model of a model directory. Throws IoError when there is none.
std::shared_ptr<const data::Tokenizer> load_tokenizer(const Path& directory);

/// Writes config.json, generation_config.json, weights and tokenizer files into an existing directory. Attached
/// adapters are not written; merged ones are in the weights. Throws ConfigError where `quantized` cannot be kept: weights of
/// several schemes, or none in few bits.
void save(LlamaForCausalLMImpl& model, const Path& directory, const SaveOptions& options = {});

/// Copies tokenizer.model, tokenizer.json and their companions, those that exist. Throws IoError.
void copy_tokenizer_files(const Path& from, const Path& to_directory);

}  // namespace lora::llama
