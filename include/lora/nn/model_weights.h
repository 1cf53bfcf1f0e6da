#pragma once

#include <torch/nn/modules/container/modulelist.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/dtype.h"
#include "lora/core/path.h"
#include "lora/core/quantization.h"
#include "lora/formats/quantization.h"
#include "lora/io/model_files.h"
#include "lora/io/quantized.h"
#include "lora/nn/parameter.h"
#include "lora/nn/weight_stream.h"

namespace lora::nn {

/// Where, in which type and how a model's weights are loaded.
struct LoadOptions {
  at::Device device = at::kCPU;
  std::optional<at::ScalarType> dtype = std::nullopt;  ///< default: config.json's
  /// Where the weights of the layers stay until somebody restores them; embedding, head and norms are on the device.
  Offload offload = Offload::kNone;
  /// Keeps the weights of the layers in few bits (LinearImpl::quantize_weight), quantised one by one as they are read;
  /// embedding, head and norms stay as they are. Weights that are stored in few bits must be of this scheme (ConfigError).
  std::optional<QuantizationScheme> quantization = std::nullopt;
  /// Fields of config.json over the checkpoint's own, values as YAML text: those that an architecture lets a loaded model
  /// change; ConfigError for others.
  std::vector<std::pair<std::string, std::string>> fields = {};
};

/// What is written beside a model's weights.
struct SaveOptions {
  std::optional<DType> dtype;               ///< default: the model's own
  std::optional<Path> copy_tokenizer_from;  ///< a model directory or a tokenizer file
  uint64_t shard_bytes = 5'000'000'000;
  /// Weights in few bits are written as bitsandbytes stores them; false: as the plain numbers that they stand for.
  bool quantized = false;
};

/// A weight as a checkpoint holds it, under the name of the model's parameter.
struct WeightShape {
  std::string name;
  std::vector<int64_t> shape;
  bool wide = false;  ///< in fp32 where the model is in half precision
};

/// Which weights a model has, and how its configuration says that they are stored.
struct ModelLayout {
  std::vector<WeightShape> weights;
  DType dtype = DType::kF32;
  std::optional<formats::QuantizationConfig> quantization = std::nullopt;
  /// Whether a weight that the model does not have may lie beside the others, unread.
  std::function<bool(const std::string&)> may_be_ignored = [](const std::string&) { return false; };
};

/// For ModelLayout::may_be_ignored: what old checkpoints carry though every model computes it, the rotation's frequencies, and a
/// tied head stored besides its table.
std::function<bool(const std::string&)> computed_weights(bool head_is_tied);

/// What fields set over a loaded model say of its head. Takes tie_word_embeddings out of them: false gives a tied head numbers of
/// its own (true), as long as it is tied; heads of their own cannot be tied (ConfigError).
bool take_untied_head(std::vector<std::pair<std::string, std::string>>& fields, bool is_tied);

/// Tokens that end a text as generation_config.json says, over config.json; nothing: it is not there or does not say. FormatError
/// for ids outside the vocabulary.
std::optional<std::vector<int64_t>> generation_end_ids(const Path& directory, int64_t vocab_size);

/// Whether a directory whose config.json says that the head is the embeddings' table holds another head besides. It is not tied
/// then, to transformers either, which a warning says.
bool stores_other_head(const Path& directory, const std::string& embedding, const std::string& head);

/// The layers of a decoder, whose Linears are the products that stream or are kept in few bits, and their path in the model.
struct LayerList {
  torch::nn::ModuleList modules;
  std::string path;  ///< "model.layers"
};

/// The weights of a model directory (model.safetensors or shards). Everything is compared before any weight is allocated, so
/// that a configuration that lies costs nothing: every weight must be there, in its shape, and nothing else; otherwise
/// ShapeError names up to five of each.
class ModelWeights {
 public:
  /// Throws IoError, FormatError, ShapeError; ConfigError where the options contradict what is stored.
  ModelWeights(const Path& directory, ModelLayout layout, const LoadOptions& options);

  /// How to make the model that takes them.
  ParameterOptions parameters() const;
  /// The type of its weights.
  at::ScalarType dtype() const { return dtype_; }
  /// Fills a model that was made so, tensor by tensor. On the meta device no weight is read: a model of shapes alone.
  void fill(torch::nn::Module& model, const LayerList& layers) const;
  /// The weights as they are to be written, in their order: plain numbers in dtype() (wide ones in fp32 where that is half
  /// precision), each read when it is asked for. They keep the files open.
  std::vector<io::TensorSource> sources() const;

 private:
  bool on_disk() const;
  bool on_host() const;
  std::optional<QuantizationScheme> form_of(const std::string& name) const;
  void fill_layers(const LayerList& layers) const;

  ModelLayout layout_;
  LoadOptions options_;
  at::ScalarType dtype_;
  std::shared_ptr<const io::ModelFiles> files_;
  std::map<std::string, io::StoredWeight> stored_;
  bool in_few_bits_ = false;
};

/// Moves the weights of the layers' products into (pinned) host memory, from where they stream to `device`; the rest moves
/// there. Nothing where `device` is the CPU.
void offload_to_host(torch::nn::Module& model, const LayerList& layers, const at::Device& device);

/// Writes a model's weights into an existing directory, and returns the layout that they have there: its type, and how they
/// are quantised (see SaveOptions::quantized). Throws ConfigError for weights of several schemes, or none in few bits.
ModelLayout save_weights(const torch::nn::Module& model, const LayerList& layers, ModelLayout layout, const Path& directory,
                         const SaveOptions& options);

/// Copies the tokenizer of SaveOptions: of a directory all files that a tokenizer may have, those that exist; a single file
/// under `file_name`. Throws IoError.
void copy_tokenizer_files(const Path& from, const Path& to_directory, const std::string& file_name = "tokenizer.model");

}  // namespace lora::nn
