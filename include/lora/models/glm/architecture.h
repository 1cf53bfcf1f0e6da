#pragma once

#include "lora/models/registry.h"

namespace lora::glm {

/// ChatGLM-6B (the first version) as "glm", for models::register_model.
models::Architecture architecture();

}  // namespace lora::glm
