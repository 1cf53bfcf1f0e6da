#pragma once

#include <memory>
#include <optional>

#include "lora/core/path.h"
#include "lora/data/tokenizer.h"
#include "lora/models/llama/model.h"

namespace lora::llama {

struct LoadOptions {
  at::Device device = at::kCPU;
  std::optional<at::ScalarType> dtype = std::nullopt;  ///< default: config.json's
  /// Where the weights of the layers stay until somebody restores them; embedding, head and norms are on the device.
  nn::Offload offload = nn::Offload::kNone;
  /// Keeps the weights of the layers in few bits (nn::LinearImpl::quantize_weight), quantised one by one as they are read;
  /// embedding, head and norms stay as they are. Weights that are stored in few bits must be of this scheme (ConfigError).
  std::optional<QuantizationScheme> quantization = std::nullopt;
};

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

struct SaveOptions {
  std::optional<DType> dtype;                ///< default: the model's own
  std::optional<Path> copy_tokenizer_from;   ///< a model directory or a tokenizer file
  uint64_t shard_bytes = 5'000'000'000;
  /// Weights in few bits are written as bitsandbytes stores them; false: as the plain numbers that they stand for.
  bool quantized = false;
};

/// Writes config.json, generation_config.json, weights and tokenizer files into an existing directory. Attached
/// adapters are not written; merged ones are in the weights. Throws ConfigError where `quantized` cannot be kept: weights of
/// several schemes, or none in few bits.
void save(LlamaForCausalLMImpl& model, const Path& directory, const SaveOptions& options = {});

/// Copies tokenizer.model, tokenizer.json and their companions, those that exist. Throws IoError.
void copy_tokenizer_files(const Path& from, const Path& to_directory);

}  // namespace lora::llama
