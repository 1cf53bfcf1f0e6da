// How bottleneck adapters look to a memory plan.
#pragma once

#include <vector>

#include "lora/nn/block_output.h"
#include "lora/nn/decoder_shapes.h"

namespace lora::adapters {

std::vector<nn::BottleneckShape> bottleneck_shapes(const nn::BlockOutput& block);

}  // namespace lora::adapters
