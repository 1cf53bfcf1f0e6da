#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lora::nn {

/// Rows of a layer whose product holds several at once, by the part's name ("q", "k", "v"): pairs of begin and end.
using FusedRows = std::map<std::string, std::vector<std::pair<int64_t, int64_t>>, std::less<>>;

/// A model with such layers is one of these, too.
class FusedLayers {
 public:
  FusedLayers() = default;
  FusedLayers(const FusedLayers&) = default;
  FusedLayers& operator=(const FusedLayers&) = default;
  virtual ~FusedLayers() = default;
  /// Which rows of the layer at a path (of the model) belong to which part; empty: it holds one product.
  virtual FusedRows fused_rows(std::string_view layer) const = 0;
};

}  // namespace lora::nn
