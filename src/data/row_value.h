// The JSON behind a Row of the public interface.
#pragma once

#include <memory>

#include "formats/json.h"
#include "lora/data/row.h"

namespace lora::data {

struct Row::Value {
  const formats::Json& object;
};

inline Row row_of(const formats::Json& object) { return Row(std::make_shared<const Row::Value>(object)); }

}  // namespace lora::data
