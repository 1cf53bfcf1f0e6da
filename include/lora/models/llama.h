#pragma once

#include "lora/models/llama/architecture.h"
#include "lora/models/llama/config.h"
#include "lora/models/llama/convert.h"
#include "lora/models/llama/gguf.h"
#include "lora/models/llama/load.h"
#include "lora/models/llama/model.h"
