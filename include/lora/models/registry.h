#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/path.h"
#include "lora/models/options.h"
#include "lora/nn/causal_lm.h"
#include "lora/nn/decoder_shapes.h"

namespace lora::models {

/// One kind of model: what programs need to know to work with it by name. Functions get models that the same architecture made.
struct Architecture {
  std::string name;               ///< `model.arch` of a run file
  std::string model_type = name;  ///< of config.json
  /// Loads a model directory.
  std::function<std::shared_ptr<nn::CausalLMImpl>(const Path& directory, const LoadOptions& options)> load;
  /// Makes fresh weights; ConfigError for a preset or field that it does not have. Null: such models are only loaded.
  std::function<std::shared_ptr<nn::CausalLMImpl>(const FreshModel& fresh)> make = nullptr;
  /// Writes a model directory that `load` reads, into an existing one.
  std::function<void(nn::CausalLMImpl& model, const Path& directory, const SaveOptions& options)> save;
  /// Copies a model directory into another, existing one, in another type or sharding, tensor by tensor; few bits become the
  /// plain numbers that they stand for. What is said of the result comes from `load` on the meta device. Null: such models are
  /// not converted.
  std::function<void(const Path& from, const Path& directory, const SaveOptions& options)> convert = nullptr;
  /// Moves the weights of the layers' products into host memory, from where they stream to the device, and the rest there.
  /// Null: `model.offload: cpu` is refused for fresh weights.
  std::function<void(nn::CausalLMImpl& model, const at::Device& device)> offload_to_host = nullptr;
  /// Fields of config.json that `load` takes over the checkpoint's own (LoadOptions::fields).
  std::vector<std::string> loaded_fields = {};
  /// Widths of the model's parts and what trains, for `lora plan`. Null: its memory cannot be planned.
  std::function<nn::DecoderShapes(nn::CausalLMImpl& model)> shapes = nullptr;
};

/// Makes an architecture known to this process, under its name. Throws ConfigError for a name that is taken or empty, and for one
/// without load or save.
void register_model(Architecture architecture);

/// The architecture of that name; ConfigError names the nearest ones.
const Architecture& architecture(std::string_view name);
/// The architecture of a model directory, by config.json's `model_type` ("llama" where it is missing, as in old checkpoints).
/// Throws IoError, FormatError.
const Architecture& architecture_of(const Path& directory);

/// In the order of their registration.
std::vector<std::string> architecture_names();

}  // namespace lora::models
