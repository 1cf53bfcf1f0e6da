#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace lora::nn {

/// Rows of a layer's weight by the projection that they belong to, ascending: "q", "k", "v".
using RowsByPart = std::map<std::string, std::vector<int64_t>>;

/// The side of a module that computes several projections in one of its layers.
class FusedProjections {
 public:
  virtual ~FusedProjections() = default;
  /// Of its child layer of that name, every row once; empty: a layer of one projection.
  virtual RowsByPart rows_by_part(const std::string& child) const = 0;
};

}  // namespace lora::nn
