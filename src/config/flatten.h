// A configuration as a list of keys with their values as YAML text.
#pragma once

#include <string>
#include <vector>

#include "config/rule.h"
#include "lora/config/run_config.h"

namespace lora::config {

struct FlatKey {
  std::string key;   ///< full: train.optimizer.lr
  std::string text;  ///< null when not given
  bool is_given;
  Effect effect;
};

/// Every key that this version acts on, in the schema's order.
std::vector<FlatKey> flatten(RunConfig config);

}  // namespace lora::config
