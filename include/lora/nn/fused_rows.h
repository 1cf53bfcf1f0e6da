#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace lora::nn {

/// Rows of a layer whose product holds several at once, by the part's name ("q", "k", "v"): pairs of begin and end.
using FusedRows = std::map<std::string, std::vector<std::pair<int64_t, int64_t>>, std::less<>>;

}  // namespace lora::nn
