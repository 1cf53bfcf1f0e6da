#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lora/data/tokenizer.h"

namespace lora::generate {

/// For GenerateOptions::stop_when: whether the text of the generated tokens has one of the strings in it. The string, and what
/// the last token says behind it, are left in the text; tokens that the tokenizer lacks say nothing. Throws ConfigError for an
/// empty string or none at all.
std::function<bool(std::span<const int64_t>)> stop_at_strings(std::shared_ptr<const data::Tokenizer> tokenizer,
                                                              std::vector<std::string> strings);

}  // namespace lora::generate
