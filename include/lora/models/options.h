#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lora/nn/model_weights.h"
#include "lora/nn/parameter.h"

/// How models of every architecture are loaded, made and saved.
namespace lora::models {

using nn::LoadOptions;
using nn::SaveOptions;

/// A model of fresh weights.
struct FreshModel {
  std::optional<std::string> preset = std::nullopt;              ///< a named size; nothing: the defaults
  std::vector<std::pair<std::string, std::string>> fields = {};  ///< of config.json, over the preset's; values as YAML text
  nn::ParameterOptions parameters = {};
};

}  // namespace lora::models
