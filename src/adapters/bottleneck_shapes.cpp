#include "adapters/bottleneck_shapes.h"

#include "lora/adapters/bottleneck.h"

namespace lora {
namespace {

nn::BottleneckShape shape_of(const BottleneckAdapter& adapter) {
  const auto& options = adapter.options();
  const std::string& activation = options.non_linearity;
  return {.size = adapter.size(),
          .numbers = nn::trained_numbers(adapter),
          .reads_stream = options.is_parallel,
          .drops = options.dropout > 0,
          .keeps_before_activation = activation != "relu" && activation != "tanh" && activation != "sigmoid",
          .learns_scale = options.learn_scaling};
}

}  // namespace

std::vector<nn::BottleneckShape> adapters::bottleneck_shapes(const nn::BlockOutput& block) {
  std::vector<nn::BottleneckShape> shapes;
  for (const auto& adapter : block->slot.contributing()) {
    if (const auto* bottleneck = dynamic_cast<const BottleneckAdapter*>(adapter.get())) shapes.push_back(shape_of(*bottleneck));
  }
  return shapes;
}

}  // namespace lora
