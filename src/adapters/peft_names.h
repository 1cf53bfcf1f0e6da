// Names of an adapter's tensors in files: PEFT's, and AdapterHub's for bottleneck adapters.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <string_view>

#include "lora/adapters/adapter_set.h"

namespace lora::adapters {

/// Of every name in PEFT's files: the wrappers around the base model.
constexpr std::string_view kFilePrefix = "base_model.model.";

/// The tensors of a file by their names.
using FileTensors = std::map<std::string, at::Tensor>;
/// Where the tensors of a file belong, by their file names without the prefix.
using Places = std::map<std::string, at::Tensor>;

/// Every place of an adapter but its virtual tokens.
Places places_of(const AdapterSet& adapters);

/// The place that a file's tensor name means; the name as it is when it means none.
std::string place_name(const std::string& file_name, const std::string& adapter, const Places& places);

/// `text` without the first occurrence of `part`.
std::string without(const std::string& text, const std::string& part);

}  // namespace lora::adapters
