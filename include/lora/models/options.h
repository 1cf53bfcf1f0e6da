#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/dtype.h"
#include "lora/core/path.h"
#include "lora/core/quantization.h"
#include "lora/nn/parameter.h"
#include "lora/nn/weight_stream.h"

/// How models of every architecture are loaded, made and saved.
namespace lora::models {

struct LoadOptions {
  at::Device device = at::kCPU;
  std::optional<at::ScalarType> dtype = std::nullopt;  ///< default: config.json's
  /// Where the weights of the layers stay until somebody restores them; embedding, head and norms are on the device.
  nn::Offload offload = nn::Offload::kNone;
  /// Keeps the weights of the layers in few bits (nn::LinearImpl::quantize_weight), quantised one by one as they are read;
  /// embedding, head and norms stay as they are. Weights that are stored in few bits must be of this scheme (ConfigError).
  std::optional<QuantizationScheme> quantization = std::nullopt;
};

/// A model of fresh weights.
struct FreshModel {
  std::optional<std::string> preset = std::nullopt;                  ///< a named size; nothing: the defaults
  std::vector<std::pair<std::string, std::string>> fields = {};      ///< of config.json, over the preset's; values as YAML text
  nn::ParameterOptions parameters = {};
};

struct SaveOptions {
  std::optional<DType> dtype;               ///< default: the model's own
  std::optional<Path> copy_tokenizer_from;  ///< a model directory or a tokenizer file
  uint64_t shard_bytes = 5'000'000'000;
  /// Weights in few bits are written as bitsandbytes stores them; false: as the plain numbers that they stand for.
  bool quantized = false;
};

}  // namespace lora::models
