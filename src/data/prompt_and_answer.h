#pragma once

#include <cstdint>
#include <vector>

#include "lora/data/example.h"

namespace lora::data {

/// A row whose answer is what it teaches.
inline Example join(const std::vector<int64_t>& prompt, const std::vector<int64_t>& answer) {
  Example example;
  example.input_ids.assign(prompt.begin(), prompt.end());
  example.input_ids.insert(example.input_ids.end(), answer.begin(), answer.end());
  example.labels.assign(prompt.size(), kIgnoreLabel);
  example.labels.insert(example.labels.end(), answer.begin(), answer.end());
  return example;
}

}  // namespace lora::data
