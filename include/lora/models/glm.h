#pragma once

#include "lora/models/glm/architecture.h"
#include "lora/models/glm/config.h"
#include "lora/models/glm/load.h"
#include "lora/models/glm/model.h"
#include "lora/models/glm/shapes.h"
