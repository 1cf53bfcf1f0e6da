#pragma once

#include "lora/models/registry.h"

namespace lora::llama {

/// Llama as "llama", for models::register_model.
models::Architecture architecture();

}  // namespace lora::llama
