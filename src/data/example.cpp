#include "lora/data/example.h"

#include <algorithm>

namespace lora::data {

int64_t Example::num_targets() const {
  if (labels.empty()) return 0;
  return std::count_if(labels.begin() + 1, labels.end(), [](int32_t label) { return label != kIgnoreLabel; });
}

}  // namespace lora::data
