#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <optional>

namespace lora {

/// Mixed precision for the current scope: on the given device type, matrix products run in `dtype`. With kFloat the
/// guard switches autocast off. Restores the former state at the end of the scope and then drops the cast cache.
class AutocastGuard {
 public:
  AutocastGuard(c10::DeviceType device, c10::ScalarType dtype);
  ~AutocastGuard();
  AutocastGuard(const AutocastGuard&) = delete;
  AutocastGuard& operator=(const AutocastGuard&) = delete;

 private:
  c10::DeviceType device_;
  bool was_enabled_;
  c10::ScalarType former_dtype_;
};

/// The type that a matrix product of `x` runs in: autocast's when it is on for the device, else x's own.
c10::ScalarType compute_dtype(c10::DeviceType device, c10::ScalarType own);

}  // namespace lora
