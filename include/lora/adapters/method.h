#pragma once

#include <string>
#include <variant>

#include "lora/adapters/adalora.h"
#include "lora/adapters/bottleneck.h"
#include "lora/adapters/ia3.h"
#include "lora/adapters/lora.h"
#include "lora/adapters/prompt.h"
#include "lora/adapters/trainable_tokens.h"

namespace lora {

/// The options of one method of fine-tuning; which it is decides what is attached.
using MethodOptions = std::variant<LoraOptions, AdaLoraOptions, Ia3Options, PrefixOptions, PromptOptions, PTuningOptions,
                                   BottleneckOptions, TrainableTokensOptions>;

/// lora | rslora | dora | adalora | ia3 | prefix | prompt | ptuning | bottleneck | trainable_tokens
std::string method_name(const MethodOptions& options);

/// Which model the adapter was made on, as adapter_config.json says it.
const std::string& base_model_name(const MethodOptions& options);
void set_base_model_name(MethodOptions& options, const std::string& name);

}  // namespace lora
