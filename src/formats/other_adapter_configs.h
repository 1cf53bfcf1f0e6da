// Configurations of adapters other than LoRA and AdaLoRA.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "formats/config_reader.h"
#include "formats/json.h"
#include "lora/formats/adapter_config.h"

namespace lora::formats {

/// The configuration of peft_type `type`; nothing for a type that is not here.
std::optional<AdapterConfig> read_other_config(const std::string& type, ConfigReader& reader);

/// Told apart from PEFT's by its keys.
bool is_adapter_hub_config(const OrderedJson& root);
AdapterHubConfig read_adapter_hub_config(const OrderedJson& root, std::string_view where);

std::string write_other_config(const PeftIa3Config& config);
std::string write_other_config(const PeftPrefixConfig& config);
std::string write_other_config(const PeftPromptConfig& config);
std::string write_other_config(const PeftPTuningConfig& config);
std::string write_other_config(const AdapterHubConfig& config);
std::string write_other_config(const PeftTrainableTokensConfig& config);

}  // namespace lora::formats
