#include "adapters/mismatches.h"

#include <c10/core/ScalarType.h>

#include "core/check.h"

namespace lora::adapters {
namespace {

std::string shape_text(const at::Tensor& tensor) {
  return fmt::format("{} [{}]", c10::toString(tensor.scalar_type()), fmt::join(tensor.sizes(), ", "));
}

}  // namespace

void Mismatches::misshapen(const std::string& name, const at::Tensor& value, const at::Tensor& place) {
  misshapen_.push_back(fmt::format("{} ({} in the file, float [{}] in the model)", quote_name(name), shape_text(value),
                                   fmt::join(place.sizes(), ", ")));
}

void Mismatches::require_none() const {
  std::vector<std::string> parts;
  const auto add = [&](const char* what, const std::vector<std::string>& names) {
    if (!names.empty()) parts.push_back(fmt::format("{} {}: {}", names.size(), what, listed(names)));
  };
  add("missing", missing_);
  add("without a place", extra_);
  add("of another shape", misshapen_);
  require<ShapeError>(parts.empty(),
                      "[adapters.load] the file's tensors must be exactly the adapter's; found {}; check r, "
                      "rank_pattern and target_modules of adapter_config.json, and that it belongs to this base "
                      "model",
                      fmt::join(parts, "; "));
}

}  // namespace lora::adapters
