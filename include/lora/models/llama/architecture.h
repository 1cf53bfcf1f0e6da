#pragma once

#include "lora/models/registry.h"

namespace lora::llama {

/// Llama as "llama", for models::register_model.
models::Architecture architecture();
/// Baichuan-7B as "baichuan": the same model, whose q, k and v are one layer.
models::Architecture baichuan_architecture();

}  // namespace lora::llama
