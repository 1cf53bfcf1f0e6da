#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "lora/core/path.h"
#include "lora/formats/adapter_config.h"

namespace lora::io {

/// A PEFT adapter directory: `adapter_config.json` and `adapter_model.safetensors`, the tensors
/// under their file names ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"). AdapterHub's has a config of
/// another form and may name the other file adapter.safetensors.
struct AdapterFiles {
  formats::AdapterConfig config;
  std::map<std::string, at::Tensor> tensors;
};

/// Reads the directory. Logs a warning for unknown config keys. A pickled adapter_model.bin or pytorch_adapter.bin alone
/// is refused. Throws IoError, FormatError.
AdapterFiles read_adapter_files(const Path& directory);

/// The configuration alone, without warnings: to look at before read_adapter_files reads it all.
formats::AdapterConfig read_adapter_config(const Path& directory);

/// Writes both files into `directory` (created), which changes as a whole or not at all; other
/// files that it holds stay. Throws IoError, ShapeError.
void write_adapter_files(const Path& directory, const AdapterFiles& files);

}  // namespace lora::io
