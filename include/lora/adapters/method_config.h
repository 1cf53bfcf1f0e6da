#pragma once

#include "lora/adapters/method.h"
#include "lora/formats/adapter_config.h"

namespace lora {

/// A file's words to ours and back. What only the model knows (its widths) is not in ours. Throws FormatError for what a file may
/// say and is not built here.
MethodOptions options_from(const formats::AdapterConfig& config);
formats::AdapterConfig config_from(const MethodOptions& options);
/// The same for what only LoRA can do; ConfigError for another method.
LoraOptions lora_options_from(const formats::AdapterConfig& config);

}  // namespace lora
