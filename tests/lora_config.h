// Of adapter files that tests know to be LoRA's.
#pragma once

#include <variant>

#include "lora/io/adapter_files.h"

namespace lora::testing {

inline formats::PeftLoraConfig& lora_config(io::AdapterFiles& files) { return std::get<formats::PeftLoraConfig>(files.config); }
inline const formats::PeftLoraConfig& lora_config(const io::AdapterFiles& files) {
  return std::get<formats::PeftLoraConfig>(files.config);
}

}  // namespace lora::testing
