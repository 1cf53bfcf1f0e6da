// The fields of config.json that a run file sets for fresh weights: stored as text, visited as what
// they are.
#pragma once

#include <optional>
#include <string_view>

#include "lora/config/run_config.h"

namespace lora::config {

/// Nothing when `fields` does not hold `name`. For int64_t, double, bool and text.
template <class T>
std::optional<T> find_field(const ModelFields& fields, std::string_view name);

/// Inserts, replaces or (without a text) removes; `fields` stay sorted.
void set_field(ModelFields& fields, std::string_view name, const std::optional<std::string>& text);

}  // namespace lora::config
