#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "adapters/listing.h"

namespace lora::adapters {

/// Whether a file's tensor may be copied to its place.
inline bool fits(const at::Tensor& value, const at::Tensor& place) {
  return value.sizes() == place.sizes() && value.is_floating_point();
}

/// What stands between a file and an adapter; each list becomes one part of the message.
class Mismatches {
 public:
  void missing(const std::string& name) { missing_.push_back(quote_name(name)); }
  void extra(const std::string& name) { extra_.push_back(quote_name(name)); }
  void misshapen(const std::string& name, const at::Tensor& value, const at::Tensor& place);

  /// Throws ShapeError naming all.
  void require_none() const;

 private:
  std::vector<std::string> missing_, extra_, misshapen_;
};

}  // namespace lora::adapters
