#include "lora/ops/autocast.h"

#include <ATen/autocast_mode.h>

namespace lora {

AutocastGuard::AutocastGuard(c10::DeviceType device, c10::ScalarType dtype)
    : device_(device),
      was_enabled_(at::autocast::is_autocast_enabled(device)),
      former_dtype_(at::autocast::get_autocast_dtype(device)) {
  at::autocast::increment_nesting();
  const bool enabled = dtype != c10::ScalarType::Float;
  at::autocast::set_autocast_enabled(device, enabled);
  if (enabled) at::autocast::set_autocast_dtype(device, dtype);
}

AutocastGuard::~AutocastGuard() {
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(device_, was_enabled_);
  at::autocast::set_autocast_dtype(device_, former_dtype_);
}

c10::ScalarType compute_dtype(c10::DeviceType device, c10::ScalarType own) {
  const bool can_be_cast = own != c10::ScalarType::Double;
  if (can_be_cast && at::autocast::is_autocast_enabled(device)) {
    return at::autocast::get_autocast_dtype(device);
  }
  return own;
}

}  // namespace lora
