// Names in messages: they may come from hostile files, so they are quoted, cut and counted.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lora::adapters {

/// The name in quotes, control characters escaped, cut to a readable length.
std::string quote_name(std::string_view name);

/// The first five of `texts`, and that there are more.
std::string listed(const std::vector<std::string>& texts);

/// The same with every name quoted.
std::string listed_names(const std::vector<std::string>& names);

}  // namespace lora::adapters
